// The gallery: finished pictures, newest first, as far as somebody has looked. Knows lists and pages; what is done to a
// picture is told to it as verbs.

import { api, picture_url, Gone } from "./api.js";
import { name_of } from "./recipe.js";
import { $, look_sharp, make } from "./tools.js";

const PAGE = 24;
const list = $("#pictures");
const items = new Map(); // key -> { picture, element }; the list holds their order
const hidden = new Set(); // keys on their way out
let verbs = {};
let search = "";
let before = ""; // where the next page begins
let is_whole = false; // nothing older is left
let loading = null;

export const key_of = (picture) => `${picture.job}/${picture.index}`;

function element_of(picture) {
  const prompt = name_of(picture.request);
  const image = look_sharp(make("img", { alt: `Picture of ${prompt}`, loading: "lazy", decoding: "async", width: picture.width, height: picture.height, src: picture_url(picture.job, picture.index) }));
  const compare = make("button", {
    type: "button", class: "icon", "aria-pressed": "false", title: "Compare", "aria-label": `Compare the picture of ${prompt}`,
    click: () => verbs.compare(picture),
  });
  compare.append(icon("M8 4v12M12 4v12M3 6h2M3 14h2M15 6h2M15 14h2"));
  const remove = make("button", { type: "button", class: "icon", title: "Delete", "aria-label": `Delete the picture of ${prompt}`, click: () => verbs.remove(picture) });
  remove.append(icon("M4 6h12M8 6V4h4v2M6 6l1 10h6l1-10"));
  return make(
    "li", { "data-key": key_of(picture) },
    make("button", { type: "button", class: "thumb", "aria-label": `Open the picture of ${prompt}`, click: () => verbs.open(picture) }, image),
    make("p", { text: prompt }),
    make("div", { class: "mini" }, compare, remove),
  );
}

function icon(path) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), line = document.createElementNS(space, "path");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

function fits(picture) {
  const words = `${picture.request.prompt}`.toLowerCase();
  return search.toLowerCase().split(/\s+/).every((word) => words.includes(word));
}

function put(picture, is_new) {
  const key = key_of(picture);
  if (items.has(key) || hidden.has(key)) return false;
  const element = element_of(picture);
  items.set(key, { picture, element });
  if (is_new) list.prepend(element);
  else list.append(element);
  return true;
}

/** A picture that has just been drawn. */
export function add(picture) {
  if (fits(picture)) put(picture, true);
  tell();
}

function tell() {
  const count = [...list.children].filter((element) => !element.hidden).length;
  $("#gallery-told").textContent = count ? "" : search ? `No picture has “${search}” in its prompt.` : "Nothing is drawn yet. What you draw is kept here.";
  $("#more").hidden = is_whole || count === 0;
}

/** The next page; several calls at once are one. */
export function more() {
  loading ??= load().finally(() => { loading = null; });
  return loading;
}

async function load() {
  const asked = search;
  try {
    const told = await api.pictures({ search, before, limit: PAGE });
    if (asked !== search) return;
    for (const picture of told.pictures) put(picture, false);
    before = told.next ?? "";
    is_whole = !told.next;
  } catch (error) {
    if (!(error instanceof Gone)) $("#gallery-told").textContent = error.message;
    else return;
  }
  tell();
}

/** What others drew, or what came while nobody was looking: the newest page again. */
export async function refresh() {
  const asked = search;
  let told;
  try { told = await api.pictures({ search, limit: PAGE }); } catch { return; }
  if (asked !== search) return;
  if (items.size === 0) {
    before = told.next ?? "";
    is_whole = !told.next;
  }
  const is_first = items.size === 0;
  for (const picture of is_first ? told.pictures : told.pictures.reverse()) put(picture, !is_first);
  tell();
}

async function start_over() {
  items.clear();
  list.replaceChildren();
  before = "";
  is_whole = false;
  await loading;
  if (items.size === 0) await more();
}

/** Take a picture out of sight; it can come back. Returns the one that stands in its place. */
export function hide(picture) {
  const key = key_of(picture);
  const element = items.get(key)?.element;
  hidden.add(key);
  const next = element?.nextElementSibling ?? element?.previousElementSibling;
  if (element) element.hidden = true;
  tell();
  return next ?? null;
}

export function unhide(picture) {
  hidden.delete(key_of(picture));
  const element = items.get(key_of(picture))?.element;
  if (element) element.hidden = false;
  tell();
  return element ?? null;
}

export function drop(picture) {
  items.get(key_of(picture))?.element.remove();
  items.delete(key_of(picture));
  tell();
}

/** Mark the pictures that are chosen for a comparison. */
export function mark(keys) {
  for (const [key, { element }] of items) {
    element.classList.toggle("chosen", keys.includes(key));
    element.querySelector(".mini button").setAttribute("aria-pressed", String(keys.includes(key)));
  }
}

/** The neighbours of a picture in the list: the newer, the older. */
export function beside(picture) {
  const shown = [...list.children].filter((element) => !element.hidden).map((element) => items.get(element.dataset.key).picture);
  const at = shown.findIndex((one) => key_of(one) === key_of(picture));
  return at < 0 ? [null, null] : [shown[at - 1] ?? null, shown[at + 1] ?? null];
}

/** `told` holds what can be done: open, compare, remove. */
export function furnish(told) {
  verbs = told;
  let timer = 0;
  $("#search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => { search = $("#search").value.trim(); start_over(); }, 200);
  });
  $("#more").addEventListener("click", async () => {
    const last = list.lastElementChild;
    await more();
    last?.nextElementSibling?.querySelector(".thumb")?.focus();
  });
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && !$("#more").hidden) more();
  }, { rootMargin: "300px" }).observe($("#more"));
  return more();
}
