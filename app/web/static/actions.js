// What buttons ask of the API: take a forecast's results along, bring those of Canvas, cancel, switch, delete.
"use strict";

const placeOf = (button) => {
  const near = button.closest("section");
  return (near && near.querySelector("[data-answer]")) || button.closest("main").querySelector(":scope > [data-answer]");
};

for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", async () => {
    const place = placeOf(button);
    Headroom.say(place, button.dataset.progressText);
    button.disabled = true;
    const answer = await Headroom.ask(place, button.dataset.download, { headers: { Accept: button.dataset.accept } });
    button.disabled = false;
    if (!answer) return;
    const name = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition") || "");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = name ? name[1] : "forecast";
    link.click();
    URL.revokeObjectURL(link.href);
    Headroom.say(place, `Saved as ${link.download}.`);
  });
}

for (const button of document.querySelectorAll("[data-send]")) {
  button.addEventListener("click", async () => {
    const { sure, to, send, body, then, done } = button.dataset;
    if (sure && !confirm(sure)) return;
    button.disabled = true;
    const answer = await Headroom.ask(placeOf(button), to, { method: send, ...(body && { headers: Headroom.JSON, body }) });
    button.disabled = Boolean(answer);
    if (answer && done) Headroom.say(placeOf(button), done);
    if (!answer || !then) return;
    const here = location.pathname + location.search;
    location.assign(then);
    // Another place on the same page is not loaded anew by that.
    if (then.includes("#") && then.split("#")[0] === here) location.reload();
  });
}

for (const form of document.querySelectorAll("[data-bring]")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const [place, button] = [".answer", "button"].map((part) => form.querySelector(part));
    const body = new FormData();
    for (const field of form.querySelectorAll("[type=file]")) {
      if (field.files.length) body.append(field.name, field.files[0]);
    }
    Headroom.say(place, "Reading and judging …");
    button.disabled = true;
    const answer = await Headroom.ask(place, form.dataset.bring, { method: "POST", body });
    button.disabled = false;
    if (answer) location.reload();
  });
}
