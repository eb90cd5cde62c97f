"use strict";
// Keeps the page up to date: sections come ready-made from the server, which has escaped every word in them.
// Without this file the page is complete, and stands still.
(() => {
  const live = document.getElementById("live");
  const STALE_MS = 5000;
  let heard = Date.now();
  let state = "";

  // Said once when it changes, so that a screen reader is not told every second.
  const say = (next, words) => {
    if (state === next) return;
    state = next;
    live.className = next;
    live.replaceChildren();
    const word = document.createElement("strong");
    word.textContent = words;
    const time = document.createElement("span");
    time.setAttribute("aria-live", "off");
    live.append(word, " ", time);
  };

  const show = ({ id, html }) => {
    const body = document.querySelector(`#${CSS.escape(id)} > .body`);
    if (!body) return;
    // What the reader has opened or holds stays so.
    const open = [...body.querySelectorAll("details[open]")].map((one) => one.id);
    const holds = document.activeElement && body.contains(document.activeElement) ? document.activeElement : null;
    const held = holds && (holds.id || holds.getAttribute("aria-label"));
    const scrolled = [...body.querySelectorAll(".wide")].map((one) => one.scrollLeft);
    const next = new DOMParser().parseFromString(html, "text/html").body;
    body.replaceChildren(...next.childNodes);
    for (const name of open) {
      const one = name && document.getElementById(name);
      if (one) one.open = true;
    }
    body.querySelectorAll(".wide").forEach((one, at) => { one.scrollLeft = scrolled[at] || 0; });
    if (held) {
      const again = document.getElementById(held) || body.querySelector(`[aria-label="${CSS.escape(held)}"]`);
      if (again) again.focus({ preventScroll: true });
    }
  };

  const source = new EventSource("/ui/events");
  source.addEventListener("section", (event) => { heard = Date.now(); show(JSON.parse(event.data)); });
  source.addEventListener("beat", (event) => {
    heard = Date.now();
    say("live", "Live");
    const time = new DOMParser().parseFromString(JSON.parse(event.data).html, "text/html").body;
    live.lastElementChild.replaceChildren(...time.childNodes);
  });
  source.addEventListener("error", () => {
    // A refused stream is not tried again by the browser: the session is over.
    if (source.readyState === EventSource.CLOSED) location.assign("/ui/login");
  });
  setInterval(() => { if (Date.now() - heard > STALE_MS) say("stale", "Stale, last heard from:"); }, 1000);
  addEventListener("pagehide", () => source.close());
  // A page that comes back out of the browser's cache has no stream any more.
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
})();
