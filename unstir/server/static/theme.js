// Light or dark: what the system says, until somebody here says otherwise. Not a module, so that it acts before the
// page is painted; it knows nothing of the rest.
"use strict";
(() => {
  const kept = (() => { try { return localStorage.getItem("unstir.theme"); } catch { return null; } })();
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
  addEventListener("DOMContentLoaded", () => {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const is_dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
    const button = document.querySelector("#theme");
    if (!button) return;
    const tell = () => {
      button.setAttribute("aria-pressed", String(is_dark()));
      button.hidden = false;
    };
    button.addEventListener("click", () => {
      const next = is_dark() ? "light" : "dark";
      document.documentElement.dataset.theme = next;
      try { localStorage.setItem("unstir.theme", next); } catch { /* it holds for this page, then */ }
      tell();
    });
    system.addEventListener("change", tell);
    addEventListener("storage", (event) => {
      if (event.key !== "unstir.theme" || !event.newValue) return;
      document.documentElement.dataset.theme = event.newValue;
      tell();
    });
    tell();
  });
})();
