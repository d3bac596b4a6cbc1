// The two forms of the overview: a file becomes a dataset, a dataset and a question become a forecast.
"use strict";

const upload = document.getElementById("upload");
const question = document.getElementById("forecast");
const { dataset_id: datasets, metric: metrics, horizon } = question.elements;

function offerMetrics() {
  const chosen = datasets.selectedOptions[0];
  if (!chosen || !chosen.dataset.metrics) return;
  metrics.replaceChildren(...JSON.parse(chosen.dataset.metrics).map((name) => new Option(name, name)));
  const daily = chosen.dataset.frequency === "D";
  question.querySelector("[data-steps]").textContent = daily ? "days" : "hours";
  if (!horizon.dataset.touched) horizon.value = daily ? 90 : 72;
}

function offerDataset(made) {
  for (const option of [...datasets.options]) if (!option.value) option.remove();
  const option = new Option(`${made.name} (${made.servers.toLocaleString("en")} servers)`, made.id, true, true);
  option.dataset.metrics = JSON.stringify(made.metrics);
  option.dataset.frequency = made.frequency;
  datasets.prepend(option);
  option.selected = true;
  offerMetrics();
}

/** XMLHttpRequest, because fetch() does not tell how much of a body has been sent. */
function send(file, told) {
  return new Promise((done) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/datasets");
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => told(event.loaded / event.total));
    request.addEventListener("loadend", () => done(request));
    const body = new FormData();
    body.append("file", file);
    request.send(body);
  });
}

upload.addEventListener("submit", async (event) => {
  event.preventDefault();
  const [place, bar, button] = [".answer", "progress", "button"].map((part) => upload.querySelector(part));
  Headroom.say(place, "Uploading …");
  bar.hidden = false;
  button.disabled = true;
  const answer = await send(upload.elements.file.files[0], (share) => {
    bar.value = share;
    if (share === 1) Headroom.say(place, "Checking the file …");
  });
  bar.hidden = true;
  button.disabled = false;
  if (answer.status !== 201) {
    Headroom.refuse(place, answer.status, answer.response);
    return;
  }
  const made = answer.response;
  Headroom.say(place, `${made.name}: ${made.servers.toLocaleString("en")} servers, ${made.rows.toLocaleString("en")} rows, ${made.start} to ${made.end}. Now ask a question of it.`, { points: made.quality.warnings });
  offerDataset(made);
  metrics.focus();
});

question.addEventListener("submit", async (event) => {
  event.preventDefault();
  const place = question.querySelector(".answer");
  const models = [...question.querySelectorAll("[name=models]:checked")].map((box) => box.value);
  if (!models.length) {
    Headroom.say(place, "Tick one model at least.", { refused: true });
    return;
  }
  const name = question.elements.name.value.trim();
  const body = { dataset_id: datasets.value, metric: metrics.value, horizon: Number(horizon.value), models, ...(name && { name }) };
  const button = question.querySelector("button");
  button.disabled = true;
  const headers = { "Content-Type": "application/json" };
  const answer = await Headroom.ask(place, "/forecasts", { method: "POST", headers, body: JSON.stringify(body) });
  if (answer) location.assign(`/pages/forecasts/${(await answer.json()).id}`);
  else button.disabled = false;
});

datasets.addEventListener("change", offerMetrics);
horizon.addEventListener("input", () => { horizon.dataset.touched = "yes"; });
offerMetrics();
