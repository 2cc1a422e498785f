// Tools of every page: elements, words for people, and what is kept in the browser.
// Data becomes text, never markup.

export const $ = (selector, root = document) => root.querySelector(selector);

/** An element with attributes (functions become listeners, null and false are left out) and children. */
export function make(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** The same, of SVG. */
export function draw(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function furnish(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

let telling = 0;
/** Tell people who listen instead of looking. */
export function say(text) {
  const told = $("#told");
  if (!told) return;
  told.textContent = "";
  clearTimeout(telling);
  telling = setTimeout(() => { told.textContent = text; }, 60); // a change that is seen as one
}

/** A word at the lower edge. It waits while it is pointed at or has the focus; `undo` is what its button does. */
export function toast(text, { label = "", undo = null, after = null, seconds = 6 } = {}) {
  const word = make("div", { class: "toast" }, make("span", { text }));
  let timer = 0;
  const end = (is_undone) => {
    clearTimeout(timer);
    removeEventListener("pagehide", leave);
    word.remove();
    if (is_undone) undo?.();
    else after?.();
  };
  const leave = () => end(false);
  const wait = () => { clearTimeout(timer); timer = setTimeout(() => end(false), seconds * 1000); };
  if (label) word.append(make("button", { type: "button", text: label, click: () => end(true) }));
  word.addEventListener("pointerenter", () => clearTimeout(timer));
  word.addEventListener("pointerleave", wait);
  word.addEventListener("focusin", () => clearTimeout(timer));
  word.addEventListener("focusout", wait);
  if (after) addEventListener("pagehide", leave);
  $("#toasts").append(word);
  say(text);
  wait();
  return () => end(false);
}

/** A sentence at the top while something is wrong with the whole page; empty takes it away. */
export function banner(text) {
  const place = $("#banner");
  if (place.textContent !== text) place.textContent = text;
  place.hidden = !text;
}

/** Values in the browser's keeping: of this tab, or else as some tab left them last. */
export const memory = {
  read(name) {
    try {
      return JSON.parse(sessionStorage.getItem(`unstir.${name}`) ?? localStorage.getItem(`unstir.${name}`) ?? "null");
    } catch { return null; }
  },
  write(name, value) {
    for (const store of [() => sessionStorage, () => localStorage]) {
      try { store().setItem(`unstir.${name}`, JSON.stringify(value)); } catch { /* private windows keep nothing */ }
    }
  },
  /** Of this tab alone. */
  read_own(name) {
    try { return JSON.parse(sessionStorage.getItem(`unstir.${name}`) ?? "null"); } catch { return null; }
  },
  write_own(name, value) {
    try { sessionStorage.setItem(`unstir.${name}`, JSON.stringify(value)); } catch { /* as above */ }
  },
};

/** A name that nobody else has: 32 hexadecimal digits. */
export function token() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A fresh seed, 0 to 2^32 - 1. */
export function fresh_seed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

export const later = (milliseconds) => new Promise((done) => { setTimeout(done, milliseconds); });

/** Whether a press of a key is meant for what is being written. */
export function is_writing(event) {
  const at = event.target;
  return at instanceof HTMLElement && (at.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(at.tagName));
}

/** A picture that becomes large is smoothed; a small one shows its pixels. */
export function look_sharp(image) {
  const tell = () => image.classList.toggle("smooth", image.naturalWidth >= 256);
  image.addEventListener("load", tell);
  return image;
}

/** Dialogs close by their button, by Escape and by a press beside them. */
export function furnish_dialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
    });
  }
}

/** 1.5 of 1.5000000001, for people. */
export const number = (value, digits = 4) => String(Number(Number(value).toPrecision(digits)));
