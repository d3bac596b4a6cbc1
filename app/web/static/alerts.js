// The page of alerts: a rule is made, and what is on its way is watched. Its buttons are those of actions.js.
"use strict";

const LIVE = document.querySelector("[data-live]");

/** What is on its way, anew every two seconds for as long as anything is; the page itself says how it looks. */
let waits = 90;
async function watch() {
  if (!LIVE || !LIVE.querySelector("[data-pending]") || !waits--) return;
  await new Promise((done) => setTimeout(done, 2000));
  const answer = document.hidden ? null : await fetch(location.href).catch(() => null);
  if (answer && answer.ok) {
    const anew = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-live]");
    if (anew && anew.innerHTML !== LIVE.innerHTML) LIVE.replaceChildren(...anew.childNodes);
  }
  watch();
}
watch();

const form = document.getElementById("rule");

/** A number as such; what is none goes as it is, for the API to say so. */
const number = (field) => (field.value.trim() && Number.isFinite(Number(field.value)) ? Number(field.value) : field.value.trim());

function condition({ kind, runway_under_days, which, level_at_least, breach_probability_over, k, of }) {
  switch (kind.value) {
    case "runway_under_days": return { runway_under_days: number(runway_under_days), which: which.value };
    case "level_at_least": return { level_at_least: level_at_least.value };
    case "breach_probability_over": return { breach_probability_over: number(breach_probability_over) };
    default: return { days_over: { k: number(k), of: number(of) } };
  }
}

function asked(fields) {
  const where = {};
  for (const field of form.querySelectorAll("[data-where]")) {
    if (field.value) where[field.dataset.where] = [field.value];
  }
  const servers = fields.servers.value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (servers.length) where.server_id = servers;
  return {
    name: fields.name.value.trim(),
    url: fields.url.value.trim(),
    condition: condition(fields),
    where,
    only_changes: fields.only_changes.checked,
    ...(fields.metric.value && { metric: fields.metric.value }),
    ...(fields.threshold.value.trim() && { threshold: number(fields.threshold) }),
    ...(fields.model.value && { model: fields.model.value }),
    ...(fields.secret.value.trim() && { secret: fields.secret.value.trim() }),
  };
}

function showSecret(made) {
  const told = form.querySelector(".answer");
  Headroom.say(told, `“${made.name}” is made. Its deliveries are signed with this secret, which is shown this once: `);
  const link = Object.assign(document.createElement("a"), { href: "/pages/alerts", textContent: "I have kept it; show the rules" });
  told.append(Object.assign(document.createElement("code"), { className: "secret", textContent: made.secret }), link);
}

if (form) {
  // form.elements.name is the field of that name; form.name would be too.
  const fields = Object.fromEntries([...form.elements].filter((field) => field.name).map((field) => [field.name, field]));
  fields.kind.addEventListener("change", () => {
    for (const part of form.querySelectorAll("[data-kind]")) part.hidden = part.dataset.kind !== fields.kind.value;
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    const answer = await Headroom.submit(form, "/alerts/rules", asked(fields));
    button.disabled = Boolean(answer);
    if (answer) showSecret(await answer.json());
  });
}
