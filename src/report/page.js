"use strict";
(() => {
  const root = document.documentElement;

  // The theme follows the system until the button is used. Storage may be forbidden to local files.
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Use the ${isDark() ? "light" : "dark"} theme`); };
  try { const kept = localStorage.getItem("ortdpo-theme"); if (kept === "dark" || kept === "light") root.dataset.theme = kept; } catch { /* none kept */ }
  button.addEventListener("click", () => {
    const wanted = isDark() ? "light" : "dark";
    const isSystems = wanted === (system.matches ? "dark" : "light");
    if (isSystems) delete root.dataset.theme; else root.dataset.theme = wanted;
    try { if (isSystems) localStorage.removeItem("ortdpo-theme"); else localStorage.setItem("ortdpo-theme", wanted); } catch { /* not kept */ }
    label();
  });
  system.addEventListener("change", label);
  button.hidden = false;
  label();

  // Values of the curves under the pointer, from the drawn points and the axes' ranges.
  const readout = document.getElementById("readout");
  const shown = (v) => v === 0 ? "0" : Math.abs(v) >= 1e-3 && Math.abs(v) < 1e5 ? String(+v.toPrecision(4)) : v.toExponential(2);
  const row = (name, value) => {
    const line = document.createElement("div");
    for (const text of [name, value]) { const part = document.createElement("span"); part.textContent = text; line.append(part); }
    return line;
  };
  for (const svg of document.querySelectorAll("svg[data-plot]")) {
    const parts = svg.dataset.plot.split(" ");
    const [x0, x1, px0, px1, y0, y1, py0, py1] = parts.slice(0, 8).map(Number);
    const log = parts[8] === "log";
    const toX = (p) => x0 + (p - px0) / (px1 - px0) * (x1 - x0);
    const toY = (p) => { const s = (p - py0) / (py1 - py0); return log ? y0 * Math.pow(y1 / y0, s) : y0 + s * (y1 - y0); };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      const lines = [];
      for (const curve of svg.querySelectorAll("polyline[data-label]")) {
        let best = null;
        for (const point of curve.points) if (!best || Math.abs(point.x - at) < Math.abs(best.x - at)) best = point;
        if (best) { if (!lines.length) lines.push(row("", String(Math.round(toX(best.x))))); lines.push(row(curve.dataset.label, shown(toY(best.y)))); }
      }
      readout.replaceChildren(...lines);
      readout.hidden = !lines.length || at < px0 - 8;
      const left = event.clientX + 16 + readout.offsetWidth > innerWidth ? event.clientX - 16 - readout.offsetWidth : event.clientX + 16;
      readout.style.left = `${Math.max(4, left)}px`;
      readout.style.top = `${event.clientY + 14}px`;
    });
    svg.addEventListener("pointerleave", () => { readout.hidden = true; });
  }

  // Prompts by words.
  for (const box of document.querySelectorAll(".find")) {
    const input = box.querySelector("input");
    const count = box.querySelector("output");
    const cards = [...box.parentElement.querySelectorAll(".card")];
    box.hidden = false;
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const card of cards) {
        const text = card.querySelector("h3").textContent.toLowerCase();
        card.hidden = !words.every((word) => text.includes(word));
        if (!card.hidden) left += 1;
      }
      count.textContent = words.length ? `${left} of ${cards.length}` : "";
    });
    // A link to a card that the words hide shows all cards again.
    document.addEventListener("click", (event) => {
      const link = event.target.closest('a[href^="#"]');
      const card = link && document.getElementById(decodeURIComponent(link.hash.slice(1)));
      if (card && card.hidden && cards.includes(card)) {
        input.value = "";
        input.dispatchEvent(new Event("input"));
      }
    });
  }
})();
