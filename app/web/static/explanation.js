// One server's forecast divided into the parts that it adds up from, as the API tells them.
"use strict";

const PARTS = { trend: "trend", weekday: "weekday", hour: "hour of the day", year: "time of the year", calendar: "calendar events", known_ahead: "known ahead", other: "other" };
/** `holiday:Christmas Day` and `end_of_quarter` as people say it. */
const said = (event) => event.replace("holiday:", "").replace("before:", "day before ").replace("after:", "day after ").replaceAll("_", " ");
const amount = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const signed = (value, digits) => {
  const size = amount(Math.abs(value), digits);
  return Number(size) === 0 ? size : `${value < 0 ? "\u2212" : "+"}${size}`;
};

/** Enough digits to tell the parts apart, whatever the metric's size. */
function digitsOf(told) {
  const size = Math.max(...told.summary.parts.map((part) => part.peak_to_trough), 1e-9);
  return Math.min(Math.max(2 - Math.floor(Math.log10(size)), 0), 6);
}

/** Events that add or take a percent of the level or more. */
const telling = ({ level, events }) => events.filter((one) => Math.abs(one.lift) >= 0.01 * Math.abs(level));

/** Stretches of steps that the same quarter end or holiday falls on, to be shaded. */
function stretches(told, digits) {
  const half = (Date.parse(told.items[1]?.timestamp ?? told.items[0].timestamp) - Date.parse(told.items[0].timestamp)) / 2;
  const shown = (time) => new Date(time).toISOString().slice(0, 19);
  const found = [];
  for (const { event, lift } of telling(told.summary)) {
    if (!/^(holiday:|end_of_quarter)/.test(event)) continue;
    let open = null;
    for (const item of told.items) {
      const at = Date.parse(item.timestamp);
      if (!item.events.includes(event)) open = null;
      else if (open) open.end = shown(at + half);
      else found.push((open = { start: shown(at - half), end: shown(at + half), label: `${said(event)}, ${signed(lift, digits)}` }));
    }
  }
  return found;
}

function explanation(place, told) {
  const unit = place.dataset.unit === "percent" ? " %" : "";
  const digits = digitsOf(told);
  const x = told.items.map((item) => item.timestamp.replace("Z", ""));
  const { level } = told.summary;
  const traces = told.summary.parts.filter((part) => Math.max(Math.abs(part.low), Math.abs(part.high)) > 0.5 * 10 ** -digits).map(({ part }) => ({
    type: "bar", name: PARTS[part], x, y: told.items.map((item) => item[part]),
    marker: { color: colour(`part-${part.replace("_", "-")}`), line: { width: 0 } },
    hovertemplate: `%{y:+.${digits}f}${unit}`,
  }));
  traces.push({
    name: "p50", mode: "lines", x, y: told.items.map((item) => item.p50 - level), line: { color: colour("ink"), width: 1.6 },
    customdata: told.items.map((item) => `${item.p50.toFixed(digits)}${unit}${item.events.length ? `<br>${plain(item.events.map(said).join(", "))}` : ""}`),
    hovertemplate: "%{customdata}",
  });
  const events = stretches(told, digits);
  const [from, to] = [x[0], x.at(-1)].map((time) => Date.parse(time.length > 10 ? `${time}Z` : time));
  return [traces, layout({
    ...(place.clientWidth < 600 && { legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", entrywidth: 85, font: { size: 11 } } }),
    barmode: "relative", bargap: 0, hovermode: "x unified",
    shapes: events.map((one) => ({ type: "rect", layer: "below", xref: "x", yref: "paper", x0: one.start, x1: one.end, y0: 0, y1: 1, line: { width: 0 }, fillcolor: colour("high"), opacity: 0.13 })),
    annotations: labels(events, from, to, place.clientWidth - 62),
    xaxis: { type: "date" },
    yaxis: { title: { text: `against the level of ${level.toFixed(digits)}${unit}` }, zeroline: true, zerolinecolor: colour("soft") },
  })];
}

function rowOf(...cells) {
  const row = document.createElement("tr");
  cells.forEach((text, place) => {
    const cell = document.createElement(place ? "td" : "th");
    if (place) cell.className = "num";
    else cell.scope = "row";
    cell.textContent = text;
    row.append(cell);
  });
  return row;
}

/** The same in short, for those who would rather read. */
function tell(section, answer) {
  const digits = digitsOf(answer);
  const { level, parts } = answer.summary;
  const events = telling(answer.summary);
  section.querySelector("[data-part-rows]").replaceChildren(
    rowOf("level", amount(level, digits), amount(level, digits), ""),
    ...parts.map((part) => rowOf(PARTS[part.part], signed(part.low, digits), signed(part.high, digits), `${Math.round(100 * part.share)}\u202f%`)));
  section.querySelector("[data-event-rows]").replaceChildren(...events.map((one) =>
    rowOf(said(one.event), one.steps.toLocaleString("en"), signed(one.lift, digits), one.lift_pct === null ? "" : `${signed(one.lift_pct, 0)}\u202f%`)));
  section.querySelector("[data-events]").hidden = !events.length;
  section.querySelector("[data-method]").textContent = answer.method;
  section.querySelector("[data-told]").hidden = false;
}

for (const place of document.querySelectorAll("[data-explanation]")) {
  const section = place.closest("section");
  const status = section.querySelector(".answer");
  const show = async () => {
    Headroom.say(status, "Working it out \u2026");
    const answer = await Headroom.ask(status, place.dataset.explanation);
    if (!answer) return;
    Headroom.say(status, "");
    const found = await answer.json();
    tell(section, found);
    const draw = () => Plotly.react(place, ...explanation(place, found), SETTINGS);
    draw().then(() => { place.dataset.drawn = "yes"; });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  };
  // It is a second's work for the service: only for those who look.
  const seen = new IntersectionObserver(([one]) => {
    if (!one.isIntersecting) return;
    seen.disconnect();
    show();
  });
  seen.observe(place);
}
