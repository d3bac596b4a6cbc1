// What every page shares: how an answer of the API is told to the person, and signing out.
"use strict";

const Headroom = {
  JSON: { "Content-Type": "application/json" },

  /** Say something in a form's or section's own place; `refused` in the colour of a refusal. */
  say(place, text, { refused = false, points = [] } = {}) {
    place.classList.toggle("refused", refused);
    place.replaceChildren(...(text ? [document.createTextNode(text)] : []));
    if (points.length) {
      const list = document.createElement("ul");
      for (const point of points) list.append(Object.assign(document.createElement("li"), { textContent: point }));
      place.append(list);
    }
  },

  /** Tell a problem answer (RFC 9457), whatever came instead of one included. */
  refuse(place, status, problem) {
    if (!problem || !problem.detail) {
      Headroom.say(place, status ? `The service answered ${status}.` : "The service cannot be reached.", { refused: true });
      return;
    }
    const points = (problem.errors || []).map((one) => {
      const rows = one.rows && one.rows.length ? ` (rows ${one.rows.slice(0, 5).join(", ")})` : "";
      return `${one.pointer}: ${one.detail}${rows}`;
    });
    Headroom.say(place, problem.detail, { refused: true, points });
  },

  /** Tell each complaint at the field that it is about (`data-pointer`); those about no field of the form are left. */
  mark(form, errors) {
    for (const one of form.querySelectorAll(".complaint")) one.remove();
    for (const field of form.querySelectorAll("[aria-invalid]")) {
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-describedby");
    }
    const fields = [...form.querySelectorAll("[data-pointer]")];
    const left = errors.filter(({ pointer, detail }) => {
      const field = fields.find((one) => pointer === one.dataset.pointer || pointer.startsWith(`${one.dataset.pointer}/`) && !fields.some((other) => other.dataset.pointer === pointer));
      if (!field) return true;
      const id = `${field.id}-complaint`;
      field.setAttribute("aria-invalid", "true");
      field.setAttribute("aria-describedby", id);
      field.after(Object.assign(document.createElement("span"), { className: "complaint", id, textContent: detail }));
      const folded = field.closest("details");
      if (folded) folded.open = true;
      return false;
    });
    form.querySelector("[aria-invalid]")?.focus();
    return left;
  },

  /** Post a form's body; null, after telling why at its fields, when it is refused. */
  async submit(form, address, body) {
    const place = form.querySelector(":scope > .answer");
    Headroom.mark(form, []);
    const answer = await fetch(address, { method: "POST", headers: Headroom.JSON, body: JSON.stringify(body) }).catch(() => null);
    if (answer && answer.ok) return answer;
    const problem = answer && (await answer.json().catch(() => null));
    const left = Headroom.mark(form, (problem && problem.errors) || []);
    Headroom.refuse(place, answer ? answer.status : 0, problem && { ...problem, errors: left });
    return null;
  },

  /** Send a request; null, after telling why, when it is refused. */
  async ask(place, address, options = {}) {
    try {
      const answer = await fetch(address, options);
      if (answer.ok) return answer;
      Headroom.refuse(place, answer.status, await answer.json().catch(() => null));
    } catch {
      Headroom.refuse(place, 0, null);
    }
    return null;
  },
};

for (const button of document.querySelectorAll("[data-sign-out]")) {
  button.addEventListener("click", async () => {
    await fetch("/session", { method: "DELETE" });
    location.assign("/");
  });
}
