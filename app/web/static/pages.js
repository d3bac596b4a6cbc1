// What every page shares: how an answer of the API is told to the person, and signing out.
"use strict";

const Headroom = {
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
