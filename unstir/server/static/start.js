// The picture that a drawing starts from: chosen, dropped, pasted or taken from the gallery; its mask; and the recipe
// that a dropped picture may carry.

import { api, picture_url, Refusal, Gone, upload_url } from "./api.js";
import { model, show_wrong } from "./form.js";
import { paint } from "./mask.js";
import { $, look_sharp, memory, say } from "./tools.js";
import { fill_recipe } from "./recipe.js";

let start = null; // { name, url, width, height, mask, words }
let on_change = () => {};
let is_strength_own = false;

/** The edit of the form, as the API takes it; null where there is none. */
export function edit() {
  if (!start) return null;
  const asked = { source: start.name, strength: Number($("#strength").value) };
  if (start.mask) asked.mask = start.mask;
  const times = Number($("#resample").value);
  if (times > 1) asked.resample = times;
  const extend = [0, 1, 2, 3].map((side) => Number($(`#extend-${side}`).value) || 0);
  if (extend.some((pixels) => pixels > 0)) asked.extend = extend;
  if ($("#fit").value) asked.fit = $("#fit").value;
  return asked;
}

/** Start from a picture (null: from noise). */
export function set_start(next, { is_quiet = false } = {}) {
  start = next;
  memory.write_own("start", start);
  $("#edit-settings").hidden = !start;
  for (const id of ["paint", "unsource"]) $(`#${id}`).hidden = !start;
  $("#source").hidden = !start;
  if (start) {
    $("#source").src = start.url;
    $("#source").alt = start.words || "Picture to start from";
    $("#start-panel").open = true;
    const own = model();
    const is_other = own && (start.width !== own.size || start.height !== own.size) && own.is_one_size;
    if (is_other && !$("#fit").value) $("#fit").value = "crop";
    if (!is_other && !is_quiet) $("#fit").value = "";
  }
  tell_mask();
  if (!is_quiet) on_change();
}

/** Start from a picture of the gallery, with this strength or the usual one. */
export function start_from(picture, strength = null) {
  is_strength_own = strength !== null;
  if (strength !== null) set_strength(strength);
  set_start({
    name: `${picture.job}/${picture.index}`, url: picture_url(picture.job, picture.index),
    width: picture.width, height: picture.height, mask: "", words: `Picture of ${picture.request.prompt}`,
  });
}

/** The edit of a recipe, where its pictures are still known here; says whether it could be taken. */
export async function take_edit(edit) {
  const is_known = (name) => /^[0-9a-f]{64}$/.test(name) || /^[0-9a-f]{32}\/\d+$/.test(name);
  const url_of = (name) => (name.includes("/") ? `/api/pictures/${name}` : upload_url(name));
  const name = edit.source?.name ?? "", mask = edit.mask?.name ?? "";
  if (!is_known(name) || (edit.mask && !is_known(mask))) return false;
  const image = new Image();
  image.src = url_of(name);
  try { await image.decode(); } catch { return false; }
  is_strength_own = true;
  set_strength(edit.strength);
  $("#resample").value = edit.resample;
  $("#fit").value = edit.fit;
  edit.extend.forEach((pixels, side) => { $(`#extend-${side}`).value = pixels; });
  const fit = edit.fit;
  set_start({ name, url: url_of(name), width: image.naturalWidth, height: image.naturalHeight, mask, words: "" }, { is_quiet: true });
  $("#fit").value = fit;
  return true;
}

function set_strength(value) {
  $("#strength").value = value;
  $("#strength-told").textContent = Number($("#strength").value).toFixed(2);
}

function tell_mask() {
  const has_mask = Boolean(start?.mask);
  $("#unmask").hidden = !has_mask;
  $("#paint").textContent = has_mask ? "Change the mask" : "Paint a mask";
  $("#source-hint").textContent = !start
    ? "Drop or paste a picture anywhere on this page, or choose one."
    : `${start.width} × ${start.height} pixels${has_mask ? ", with a mask: only what is painted is drawn anew" : ""}`;
  if (!is_strength_own) set_strength(has_mask ? 1 : 0.75);
}

/** Take in a file: read its recipe, or start from it. */
export async function take_file(file) {
  if (!file) return;
  if (file.type && !file.type.startsWith("image/")) {
    show_wrong(new Refusal(`${file.name || "that"} is no picture; give a PNG, JPEG or WebP`, { field: "edit" }));
    return;
  }
  say("Reading the picture.");
  try {
    const kept = await api.keep(file);
    const next = { name: kept.name, url: upload_url(kept.name), width: kept.width, height: kept.height, mask: "", words: file.name ? `Picture ${file.name}` : "" };
    if (kept.recipe) offer(next, kept.recipe);
    else { is_strength_own = false; set_start(next); say("The next drawing starts from this picture."); }
  } catch (error) {
    if (error instanceof Refusal) show_wrong(new Refusal(error.message, { field: "edit" }));
    else if (error instanceof Gone) show_wrong(new Refusal("the server does not answer; try again when it is back", { field: "edit" }));
    else throw error;
  }
}

let offered = null;
function offer(next, recipe) {
  offered = { next, recipe };
  $("#dropped-picture").src = next.url;
  $("#dropped-picture").alt = `Picture of ${recipe.request?.prompt ?? "an unknown prompt"}`;
  fill_recipe($("#dropped-recipe"), recipe.request ?? recipe, recipe);
  $("#dropped").showModal();
}

/** `take_recipe(request, model)` brings a recipe into the form; `changed()` is told of every change. */
export function furnish({ take_recipe, changed }) {
  on_change = changed;
  look_sharp($("#source"));
  look_sharp($("#dropped-picture"));
  $("#choose").addEventListener("click", () => $("#file").click());
  $("#file").addEventListener("change", () => { take_file($("#file").files[0]); $("#file").value = ""; });
  $("#unsource").addEventListener("click", () => { is_strength_own = false; set_start(null); $("#choose").focus(); });
  $("#unmask").addEventListener("click", () => { set_start({ ...start, mask: "" }); $("#paint").focus(); });
  $("#paint").addEventListener("click", async () => {
    const mask = await paint(start.url, start.mask ? upload_url(start.mask) : "");
    if (!mask || !start) return;
    try {
      const kept = await api.keep(mask);
      set_start({ ...start, mask: kept.name });
      say("The mask is taken. Only what is painted is drawn anew.");
    } catch (error) {
      show_wrong(new Refusal(error.message, { field: "edit" }));
    }
  });
  $("#strength").addEventListener("input", () => {
    is_strength_own = true;
    $("#strength-told").textContent = Number($("#strength").value).toFixed(2);
  });
  $("#take-recipe").addEventListener("click", () => { $("#dropped").close(); take_recipe(offered.recipe.request, offered.recipe.model); });
  $("#take-picture").addEventListener("click", () => { $("#dropped").close(); is_strength_own = false; set_start(offered.next); });

  const has_files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => { if (has_files(event)) { event.preventDefault(); document.body.classList.add("over"); } });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  addEventListener("drop", (event) => {
    if (!has_files(event)) return;
    event.preventDefault();
    document.body.classList.remove("over");
    if (!$("dialog[open]")) take_file(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (!file || $("dialog[open]")) return;
    event.preventDefault();
    take_file(file);
  });

  const kept = memory.read_own("start");
  if (kept?.name) set_start(kept, { is_quiet: true });
}
