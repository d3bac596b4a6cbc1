// Follows forecasts that go on, by the server-sent events of the API.
"use strict";

const shown = (share) => `${Math.round(share * 100)}\u202f%`;

function badge(status) {
  return Object.assign(document.createElement("span"), { className: `status ${status}`, textContent: status });
}

function showRun(place, run) {
  const line = [...place.querySelectorAll("[data-run]")].find((one) => one.dataset.run === run.model);
  if (!line) return;
  const ended = !["queued", "running"].includes(run.status);
  line.querySelector("[data-status]").replaceChildren(badge(run.status));
  line.querySelector("[data-progress]").value = ended ? 1 : run.progress;
  line.querySelector("[data-percent]").textContent = shown(ended ? 1 : run.progress);
  line.querySelector("[data-stage]").textContent = run.error ? run.error.detail : ended ? `${run.servers} servers` : run.stage || "";
}

function showForecast(place, forecast) {
  const [status, bar, count] = ["status", "progress", "percent"].map((name) => place.querySelector(`[data-forecast-${name}]`));
  if (status) status.replaceChildren(badge(forecast.status));
  if (bar) bar.value = forecast.progress;
  if (count) count.textContent = shown(forecast.progress);
}

// Browsers keep few connections to one service: the newest two are followed.
for (const place of [...document.querySelectorAll("[data-follow]")].slice(0, 2)) {
  const events = new EventSource(place.dataset.follow);
  const runs = new Map();
  events.addEventListener("run", (event) => {
    const run = JSON.parse(event.data);
    runs.set(run.model, ["queued", "running"].includes(run.status) ? run.progress : 1);
    showRun(place, run);
    const bar = place.querySelector("[data-forecast-progress]");
    if (bar) {
      bar.value = [...runs.values()].reduce((sum, share) => sum + share, 0) / runs.size;
      place.querySelector("[data-forecast-percent]").textContent = shown(bar.value);
    }
  });
  events.addEventListener("forecast", (event) => showForecast(place, JSON.parse(event.data)));
  events.addEventListener("end", (event) => {
    events.close();
    showForecast(place, JSON.parse(event.data));
    if ("reload" in place.dataset) location.reload();
  });
  addEventListener("pagehide", () => events.close());
}
