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

/** One per form as it stands: a second click makes no second forecast, another question is another one. */
function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const paid = question.querySelector("[data-paid]");
const canvas = question.querySelector("[name=models][value=canvas]");
let key = newKey();

function asked() {
  const models = [...question.querySelectorAll("[name=models]:checked")].map((box) => box.value);
  const name = question.elements.name.value.trim();
  return {
    dataset_id: datasets.value,
    metric: metrics.value,
    horizon: Number(horizon.value),
    models,
    ...(name && { name }),
    ...(canvas && canvas.checked && { max_cost_usd: Number(question.elements.max_cost_usd.value) }),
  };
}

const dollars = (amount) => `$${amount.toFixed(2)}`;

/** What canvas would cost, or why it cannot run, before anything is submitted. */
let latest = 0;
async function estimate() {
  if (!paid) return;
  paid.hidden = !canvas.checked;
  const number = ++latest;
  if (paid.hidden || !datasets.value || !metrics.value || !horizon.value) return;
  const place = paid.querySelector("[data-estimate]");
  const body = asked();
  const answer = await fetch("/forecasts/estimate", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }).catch(() => null);
  const said = answer && (await answer.json().catch(() => null));
  if (number !== latest) return;
  if (!answer || !answer.ok) {
    Headroom.refuse(place, answer ? answer.status : 0, said);
    return;
  }
  const run = said.runs.find((one) => one.model === "canvas");
  if (run.eligible) {
    const minutes = run.seconds ? `, ${Math.ceil(run.seconds / 60)} min` : "";
    Headroom.say(place, `canvas: estimated ${dollars(run.estimated_usd)}${minutes}; stopped at ${dollars(body.max_cost_usd)}.`);
  } else {
    Headroom.say(place, `canvas would be skipped, and local models answer: ${run.reason}`, { refused: true });
  }
}

question.addEventListener("submit", async (event) => {
  event.preventDefault();
  const place = question.querySelector(":scope > .answer");
  const body = asked();
  if (!body.models.length) {
    Headroom.say(place, "Tick one model at least.", { refused: true });
    return;
  }
  const button = question.querySelector("button");
  button.disabled = true;
  const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
  const answer = await Headroom.ask(place, "/forecasts", { method: "POST", headers, body: JSON.stringify(body) });
  if (answer) location.assign(`/pages/forecasts/${(await answer.json()).id}`);
  else button.disabled = false;
});

datasets.addEventListener("change", offerMetrics);
horizon.addEventListener("input", () => { horizon.dataset.touched = "yes"; });
for (const change of ["input", "change"]) {
  question.addEventListener(change, () => { key = newKey(); });
}
question.addEventListener("change", estimate);
offerMetrics();
estimate();
