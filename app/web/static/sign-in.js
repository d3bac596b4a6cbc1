// Exchanges an API key for the session cookie, and shows the page that was asked for.
"use strict";

const again = () => (location.pathname === "/sign-in" ? location.replace("/") : location.replace(location.href));

document.getElementById("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const body = JSON.stringify({ key: form.elements.key.value.trim() });
  const headers = { "Content-Type": "application/json" };
  const answer = await Headroom.ask(form.querySelector(".answer"), "/session", { method: "POST", headers, body });
  if (!answer) {
    form.elements.key.select();
    return;
  }
  const { scopes } = await answer.json();
  if (scopes.includes("read")) again();
  else Headroom.say(form.querySelector(".answer"), `Pages need the scope read; this key has ${scopes.join(", ")}.`, { refused: true });
});

// A strict cookie is not sent along a link from another site: whoever came by one may be signed in already.
if (!document.referrer.startsWith(location.origin)) {
  fetch("/session").then((answer) => answer.json()).then(({ scopes }) => scopes.includes("read") && again());
}
