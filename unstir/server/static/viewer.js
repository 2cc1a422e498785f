// A finished picture at leisure: its recipe, its neighbours, its way back into noise; and two of them side by side.
// What is done to a picture is told as verbs.

import { download_url, level_url, picture_url } from "./api.js";
import * as gallery from "./gallery.js";
import { differences, fill_recipe, name_of } from "./recipe.js";
import { $, is_writing, look_sharp, make, say, toast } from "./tools.js";

let verbs = {};
let viewed = null;
let chosen = []; // for a comparison

/** Buttons for what can be done to a picture. */
export function acts(picture, { is_open = false } = {}) {
  const button = (text, verb, hint = "") => make("button", { type: "button", text, title: hint || null, click: () => { $("#viewer").close(); verb(picture); } });
  return [
    is_open ? null : make("button", { type: "button", text: "Look closer", title: "Recipe, noise levels and more", click: () => open(picture) }),
    button("Edit", verbs.edit, "Start the next drawing from this picture"),
    button("Variations", verbs.vary, "Four pictures that start from this one"),
    is_open ? button("Redo", verbs.redo, "Take its recipe and draw it again") : null,
    is_open ? button("Take recipe", verbs.take, "Bring its recipe into the form") : null,
    is_open ? button("Compare", compare, "Look at it beside another one") : null,
    make("a", { class: "button", href: download_url(picture.job, picture.index), download: "", text: "Download", title: "The PNG, with its recipe inside" }),
    is_open ? button("Delete", verbs.remove) : null,
  ].filter(Boolean);
}

export function open(picture) {
  viewed = picture;
  const prompt = name_of(picture.request);
  $("#viewer-title").textContent = prompt.length > 90 ? `${prompt.slice(0, 88)}…` : prompt;
  level.reset();
  $("#viewer-acts").replaceChildren(...acts(picture, { is_open: true }));
  fill_recipe($("#recipe"), picture.request, picture);
  const [newer, older] = gallery.beside(picture);
  $("#newer").disabled = !newer;
  $("#older").disabled = !older;
  if (!$("#viewer").open) $("#viewer").showModal();
}

// The slider through the noise levels. The server is asked for one level at a time, and the last one that was wanted
// is the one that stays.
const level = {
  wanted: 0, busy: false, url: "",
  reset() {
    this.wanted = 0;
    $("#level").value = 0;
    this.tell(0);
    this.put(picture_url(viewed.job, viewed.index), "");
  },
  tell(t) {
    $("#level-told").textContent = t.toFixed(2);
    $("#level").setAttribute("aria-valuetext", t === 0 ? "the picture" : t === 1 ? "nothing but noise" : `${Math.round(100 * t)} % on the way to noise`);
  },
  put(url, made) {
    const image = $("#viewed");
    image.src = url;
    image.alt = `Picture of ${name_of(viewed.request)}`;
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = made;
  },
  async go(t) {
    this.wanted = t;
    this.tell(t);
    if (this.busy) return;
    this.busy = true;
    try {
      for (let shown = null; shown !== this.wanted; ) {
        shown = this.wanted;
        const of = viewed;
        const answer = await fetch(level_url(of.job, of.index, shown));
        if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error?.message ?? "this level cannot be shown");
        const url = URL.createObjectURL(await answer.blob());
        if (of === viewed) this.put(url, url);
        else URL.revokeObjectURL(url);
      }
    } catch (error) {
      toast(error instanceof TypeError ? "The server does not answer." : error.message);
    } finally { this.busy = false; }
  },
};

/** Choose a picture for a comparison; the second one opens it. */
export function compare(picture) {
  const key = gallery.key_of(picture);
  if (chosen.some((one) => gallery.key_of(one) === key)) chosen = chosen.filter((one) => gallery.key_of(one) !== key);
  else chosen = [...chosen.slice(-1), picture];
  tell_chosen();
  if (chosen.length === 2) show_comparison();
}

function tell_chosen() {
  gallery.mark(chosen.map(gallery.key_of));
  $("#compare-told").textContent = chosen.length === 1 ? "Choose another picture to compare." : "";
  if (chosen.length === 1) say("Chosen. Choose another picture to compare.");
}

function show_comparison() {
  const [a, b] = chosen;
  $("#sides").replaceChildren(...[a, b].map((picture, side) => make(
    "figure", {},
    look_sharp(make("img", { src: picture_url(picture.job, picture.index), alt: `Picture of ${name_of(picture.request)}` })),
    make("figcaption", { text: `${side ? "B" : "A"}: ${name_of(picture.request)}, seed ${picture.request.seed}` }),
  )));
  const rows = differences(a.request, b.request);
  const head = make("tr", {}, ...["", "A", "B"].map((text) => make("th", { scope: "col", text: text || "What differs" })));
  $("#differences").replaceChildren(
    make("caption", { text: rows.length ? "Their recipes differ in this:" : "Their recipes are the same." }),
    ...(rows.length ? [make("thead", {}, head), make("tbody", {}, ...rows.map(([name, x, y]) => make("tr", {}, make("th", { scope: "row", text: name }), make("td", { text: x }), make("td", { text: y }))))] : []),
  );
  const is_alike = a.width === b.width && a.height === b.height;
  $("#between").hidden = !is_alike;
  $("#comparison").showModal();
}

export const forget = (picture) => {
  chosen = chosen.filter((one) => gallery.key_of(one) !== gallery.key_of(picture));
  tell_chosen();
};

/** `told` holds what can be done: edit, vary, redo, take, remove, between. */
export function furnish(told) {
  verbs = told;
  look_sharp($("#viewed"));
  $("#level").addEventListener("input", () => level.go(Number($("#level").value)));
  const turn = (side) => { const next = gallery.beside(viewed)[side]; if (next) open(next); };
  $("#newer").addEventListener("click", () => turn(0));
  $("#older").addEventListener("click", () => turn(1));
  $("#viewer").addEventListener("keydown", (event) => {
    if (is_writing(event)) return;
    if (event.key === "ArrowLeft") turn(0);
    if (event.key === "ArrowRight") turn(1);
  });
  $("#between").addEventListener("click", () => { $("#comparison").close(); verbs.between(...chosen); });
  $("#comparison").addEventListener("close", () => { chosen = []; tell_chosen(); });
}
