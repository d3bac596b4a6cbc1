// The two charts that plotly.js draws: one server's fan, and the fleet's scatter. Colours are the style sheet's.
"use strict";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
/** plotly.js reads text as a little HTML of its own: no name of a server or metric is to be taken for that. */
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const SETTINGS = { responsive: true, displayModeBar: false, doubleClick: "reset" };

function layout(more) {
  const axis = { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true };
  return {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("soft") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 48, r: 14, t: 34, b: 36 },
    hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("line"), font: { color: colour("ink") } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    ...more,
    xaxis: { ...axis, ...more.xaxis },
    yaxis: { ...axis, ...more.yaxis },
  };
}

/** Names of the peaks, the rarer causes first, and only as many as do not overlap; width in pixels. */
function labels(peaks, from, to, width) {
  const order = ["end of quarter", "holiday", "weekday"];
  const rank = (peak) => order.findIndex((cause) => peak.label.startsWith(cause));
  const taken = [];
  const notes = [];
  for (const peak of [...peaks].sort((a, b) => rank(a) - rank(b))) {
    const at = (Date.parse(`${peak.start}Z`) + Date.parse(`${peak.end}Z`)) / 2;
    const half = peak.label.length * 3.1;
    const centre = Math.min(Math.max(((at - from) / (to - from)) * width, half), width - half);
    if (taken.some((other) => Math.abs(other.centre - centre) < other.half + half)) continue;
    taken.push({ centre, half });
    const x = new Date(from + (centre / width) * (to - from)).toISOString().slice(0, 19);
    notes.push({ xref: "x", yref: "paper", x, y: 1, yanchor: "top", showarrow: false, text: peak.label, font: { size: 11, color: colour("high") } });
  }
  return notes;
}

function fan(place, data) {
  const { x, p10, p50, p90 } = data.forecast;
  const unit = place.dataset.unit === "percent" ? " %" : "";
  const value = `%{y:.1f}${unit}`;
  const line = { shape: "linear" };
  const band = { x, mode: "lines", line: { width: 0 }, hovertemplate: value };
  const traces = [
    { x: data.history.x, y: data.history.y, name: "history", mode: "lines", line: { ...line, color: colour("history"), width: 1.2 }, hovertemplate: value },
    { ...band, y: p10, name: "p10", showlegend: false },
    { ...band, y: p90, name: "p10 to p90", fill: "tonexty", fillcolor: colour("band") + "cc", hovertemplate: `${value}<extra>p90</extra>` },
    { x, y: p50, name: "p50", mode: "lines", line: { ...line, color: colour("median"), width: 1.6 }, hovertemplate: value },
  ];
  const shapes = data.peaks.map((peak) => ({ type: "rect", layer: "below", xref: "x", yref: "paper", x0: peak.start, x1: peak.end, y0: 0, y1: 1, line: { width: 0 }, fillcolor: colour("high"), opacity: 0.13 }));
  shapes.push({ type: "line", xref: "x", yref: "paper", x0: data.asOf, x1: data.asOf, y0: 0, y1: 1, line: { color: colour("soft"), width: 1, dash: "dot" } });
  const notes = [];
  if (data.threshold !== null) {
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: data.threshold, y1: data.threshold, line: { color: colour("limit"), width: 1.5, dash: "dash" } });
    notes.push({ xref: "paper", x: 0, y: data.threshold, xanchor: "left", yanchor: "bottom", showarrow: false, text: `threshold ${data.threshold}${unit}`, bgcolor: colour("surface"), opacity: 0.9, font: { color: colour("limit") } });
  }
  // A narrow screen opens on less of the history, so that the forecast can be read.
  const [whole, to] = data.opens.map((time) => Date.parse(`${time}Z`));
  const from = place.clientWidth < 600 ? Math.max(whole, to - 2.5 * (to - Date.parse(`${data.asOf}Z`))) : whole;
  const opens = [from, to].map((time) => new Date(time).toISOString().slice(0, 19));
  notes.push(...labels(data.peaks, from, to, place.clientWidth - 62));
  const values = [...p10, ...p90, ...data.history.y].filter((one) => one !== null);
  const reach = [Math.min(...values), Math.max(...values, data.threshold ?? -Infinity)];
  const room = (reach[1] - reach[0]) * 0.12 || 1;
  const low = reach[0] >= 0 ? Math.max(0, reach[0] - 2 * room) : reach[0] - room;
  return [traces, layout({
    hovermode: "x unified", shapes, annotations: notes,
    xaxis: { type: "date", range: opens, fixedrange: false },
    yaxis: { title: { text: plain(place.dataset.metric) + (unit && ", %") }, range: [low, reach[1] + room] },
  })];
}

function scatter(place, data) {
  const beyond = data.horizon * 1.06;
  const names = { very_high: "Very high", high: "High", normal: "Normal", underutilized: "Under-used" };
  const traces = data.levels.map((level) => {
    const those = data.servers.filter((server) => server.level === level);
    return {
      name: names[level], mode: "markers", type: "scatter",
      x: those.map((server, place) => server.runway ?? beyond + data.horizon * 0.005 * ((place % 13) - 6)), y: those.map((server) => server.probability * 100),
      customdata: those.map((server) => server.id),
      text: those.map((server) => `${plain(server.id)}<br>${server.runway === null ? "not within the horizon" : `runway ${Math.round(server.runway * 100) / 100} days`}<br>breach ${(server.probability * 100).toFixed(0)} %, max p90 ${server.maxP90}`),
      hovertemplate: "%{text}<extra></extra>",
      marker: { size: 9, opacity: 0.8, color: colour(level.replace("_", "-")), line: { width: 1, color: colour("surface") } },
    };
  });
  const shapes = [{ type: "rect", layer: "below", xref: "x", yref: "paper", x0: data.horizon * 1.02, x1: data.horizon * 1.1 + 1, y0: 0, y1: 1, line: { width: 0 }, fillcolor: colour("track"), opacity: 0.6 }];
  const step = [1, 2, 5, 10, 15, 30, 60, 90, 180, 365].find((one) => data.horizon / one <= 7) ?? 730;
  const ticks = [...Array(Math.floor(data.horizon / step) + 1).keys()].map((one) => one * step);
  return [traces, layout({
    shapes, hovermode: "closest",
    xaxis: { title: { text: "runway, days" }, range: [0, data.horizon * 1.1], tickvals: [...ticks, beyond], ticktext: [...ticks.map(String), "later"] },
    yaxis: { title: { text: "breach probability, %" }, range: [-4, 106], tickvals: [0, 25, 50, 75, 100] },
  })];
}

const DRAW = { fan, scatter };

for (const place of document.querySelectorAll("[data-plot]")) {
  const data = JSON.parse(document.getElementById(place.dataset.figures).textContent);
  const draw = () => Plotly.react(place, ...DRAW[place.dataset.plot](place, data), SETTINGS);
  draw().then(() => {
    place.dataset.drawn = "yes";
    if (place.dataset.plot !== "scatter") return;
    place.on("plotly_click", ({ points }) => {
      const asked = new URLSearchParams({ model: place.dataset.model, ...(place.dataset.threshold && { threshold: place.dataset.threshold }) });
      location.assign(`/pages/forecasts/${data.forecast}/servers/${encodeURIComponent(points[0].customdata)}?${asked}`);
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
