// The form: what is asked for, as values of its controls, as a request of the API, and kept between visits. Knows the
// controls; does not know how anything is sent or shown.

import { $, fresh_seed, memory } from "./tools.js";

const TEXTS = ["prompt", "negative", "sampler", "grid", "guidance_method"];
const NUMBERS = ["seed", "number", "steps", "guidance", "eta", "guidance_rescale"];
const KEPT = [...TEXTS, ...NUMBERS, "interval_low", "interval_high", "width", "height", "model"];
const SWITCHES = ["syntax", "tile"];
// Where a sentence about a field of the API, or of a request, is shown.
const PLACES = {
  guidance_scale: "guidance", height: "width", size: "width", to_prompt: "way", to_source: "way", source: "edit",
  mask: "edit", method: "guidance_method", rescale: "guidance_rescale", negative_prompt: "negative",
};

const form = $("#ask");
const control = (name) => form.elements[name];
let models = [];
let limits = {};

/** The facts of the chosen model. */
export const model = () => models.find((facts) => facts.name === control("model").value) ?? models[0] ?? null;

/** Furnish the form with what the server can do, and with what was in it when it was left. */
export function furnish(told) {
  models = told.models;
  limits = told.limits ?? {};
  control("model").replaceChildren(...models.map((facts) => new Option(facts.name, facts.name)));
  $("#models").hidden = models.length < 2;
  const names = (told.guidance_methods ?? []).filter((name) => name !== "plain");
  if (names.length) control("guidance_method").replaceChildren(new Option("plain", ""), ...names.map((name) => new Option(name, name)));
  if (told.grids) $("#grids").replaceChildren(...told.grids.map((name) => new Option(name, name)));
  if (limits.pictures) {
    control("number").max = limits.pictures;
    $("#frames").max = limits.pictures;
  }
  if (limits.steps) control("steps").max = limits.steps;
  if (limits.prompt) for (const name of ["prompt", "negative"]) control(name).maxLength = limits.prompt;
  // What somebody wrote before the server had answered is left as it is.
  const written = control("prompt").value;
  recall();
  if (written) control("prompt").value = written;
  if (!control("seed").value) control("seed").value = fresh_seed();
}

/** Bring the controls to the chosen model; `is_fresh` also takes its own settings. */
export function fit_model(is_fresh) {
  const facts = model();
  if (!facts) return;
  const own = facts.sampling;
  const chosen = control("sampler").value;
  const name = (facts.tuned ?? []).length ? `tuned for ${facts.tuned.join(", ")} steps` : own.sampler;
  control("sampler").replaceChildren(
    new Option(`the model's own (${name})`, ""),
    ...facts.samplers.map((sampler) => new Option(sampler, sampler)),
  );
  if (facts.samplers.includes(chosen)) control("sampler").value = chosen;
  const size = [control("width"), control("height")];
  for (const side of size) {
    side.step = facts.multiple;
    side.min = facts.multiple;
    side.max = 8 * facts.size;
    side.disabled = facts.is_one_size;
    if (facts.is_one_size || is_fresh || !side.value) side.value = facts.size;
  }
  $("#size-hint").textContent = facts.is_one_size ? "the only size of this model" : `multiples of ${facts.multiple}`;
  control("grid").placeholder = "the model's own";
  if (is_fresh || !control("steps").value) control("steps").value = own.steps;
  if (is_fresh || !control("guidance").value) control("guidance").value = own.guidance_scale;
  if (!is_fresh) return;
  for (const name of ["sampler", "grid", "eta", "guidance_method", "guidance_rescale", "interval_low", "interval_high"]) control(name).value = "";
  for (const name of SWITCHES) control(name).checked = false;
}

const number_of = (name) => (control(name).value.trim() === "" ? null : Number(control(name).value));

/** Whether the grid is one that says how many steps it has. */
export const has_own_steps = () => /^\s*(sections\b|[\d.]+\s*,)/.test(control("grid").value);

/** What the form asks for, as POST /api/jobs takes it; what says nothing is left out. */
export function request() {
  const asked = { prompt: control("prompt").value };
  for (const name of TEXTS.slice(1)) if (control(name).value.trim()) asked[name] = control(name).value.trim();
  for (const name of NUMBERS) if (number_of(name) !== null) asked[name] = number_of(name);
  const [low, high] = [number_of("interval_low"), number_of("interval_high")];
  if (low !== null || high !== null) asked.guidance_interval = [low ?? -1e3, high ?? 1e3];
  if (has_own_steps()) delete asked.steps;
  const facts = model();
  if (facts && !facts.is_one_size) for (const name of ["width", "height"]) if (number_of(name) !== null) asked[name] = number_of(name);
  if (models.length > 1) asked.model = control("model").value;
  if (control("syntax").checked) asked.syntax = "weighted";
  if (control("tile").checked) asked.tile = true;
  return asked;
}

/** Bring a request that was drawn, or a recipe, into the form. */
export function fill(drawn, name = "") {
  if (models.some((facts) => facts.name === name)) control("model").value = name;
  fit_model(true);
  const facts = model();
  const own = drawn.sampler === facts?.sampling.sampler && drawn.grid === facts?.sampling.grid && !(facts.tuned ?? []).includes(drawn.steps);
  const is_tuned = drawn.sampler === "tuned" || own;
  const put = (field, value) => { control(field).value = value ?? ""; };
  put("prompt", drawn.prompt);
  put("negative", drawn.negative);
  put("seed", drawn.seed);
  put("number", 1);
  put("steps", drawn.steps);
  put("guidance", drawn.guidance_scale);
  put("sampler", is_tuned ? "" : drawn.sampler);
  put("grid", is_tuned ? "" : drawn.grid);
  put("eta", drawn.eta || "");
  put("guidance_method", drawn.steering?.method === "plain" ? "" : drawn.steering?.method);
  put("guidance_rescale", drawn.steering?.rescale || "");
  put("interval_low", drawn.guidance_interval?.[0]);
  put("interval_high", drawn.guidance_interval?.[1]);
  if (facts && !facts.is_one_size) { put("width", drawn.width); put("height", drawn.height); }
  control("syntax").checked = drawn.syntax === "weighted";
  control("tile").checked = Boolean(drawn.tile);
  if (["grid", "eta", "guidance_method", "guidance_rescale", "interval_low"].some((field) => control(field).value)) $("#more-panel").open = true;
  remember();
}

/** The seed that the next drawing has; without a lock, one that has been drawn already gives way to a fresh one. */
export const is_locked = () => $("#lock").getAttribute("aria-pressed") === "true";
export function roll() {
  control("seed").value = fresh_seed();
  remember();
}
export function lock(is_on) {
  $("#lock").setAttribute("aria-pressed", String(is_on));
  remember();
}

export function remember() {
  const values = Object.fromEntries(KEPT.map((name) => [name, control(name).value]));
  for (const name of SWITCHES) values[name] = control(name).checked;
  memory.write("form", { ...values, is_locked: is_locked(), is_live: $("#live").checked });
}

function recall() {
  const kept = memory.read("form");
  if (kept && models.some((facts) => facts.name === kept.model)) control("model").value = kept.model;
  fit_model(!kept);
  if (!kept) return;
  for (const name of KEPT) if (name !== "model" && typeof kept[name] === "string") control(name).value = kept[name];
  for (const name of SWITCHES) control(name).checked = Boolean(kept[name]);
  $("#lock").setAttribute("aria-pressed", String(Boolean(kept.is_locked)));
  $("#live").checked = kept.is_live !== false;
  fit_model(false);
}

/** What is wrong by the ranges of the controls themselves, as the server would say it; null if nothing is. */
export function invalid() {
  const wrong = [...form.elements].find((one) => one.willValidate && !one.checkValidity());
  return wrong ? { message: wrong.validationMessage, field: wrong.closest(".field")?.dataset.field ?? "" } : null;
}

/** Sentences at the fields that they are about. */
export function clear_wrong() {
  for (const word of document.querySelectorAll(".wrong")) { word.hidden = true; word.textContent = ""; }
  for (const marked of document.querySelectorAll("[aria-invalid]")) {
    marked.removeAttribute("aria-invalid");
    const others = (marked.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => id && !id.endsWith("-wrong"));
    if (others.length) marked.setAttribute("aria-describedby", others.join(" "));
    else marked.removeAttribute("aria-describedby");
  }
}

export function show_wrong(refusal, { is_quiet = false } = {}) {
  clear_wrong();
  const parts = String(refusal.field ?? "").split(".").reverse();
  const named = parts.map((part) => PLACES[part] ?? part).find((part) => part && document.getElementById(`${part}-wrong`));
  const place = $(`#${named ?? "form"}-wrong`);
  place.textContent = sentence(refusal.message);
  place.hidden = false;
  const field = place.closest(".field");
  if (!field) return;
  const panel = field.closest("details");
  if (panel) panel.open = true;
  const marked = $("input:not([type=file]), textarea, select, button", field);
  if (!marked) return;
  marked.setAttribute("aria-invalid", "true");
  marked.setAttribute("aria-describedby", [marked.getAttribute("aria-describedby"), place.id].filter(Boolean).join(" "));
  if (!is_quiet) marked.focus();
}

/** A message as a sentence: with a capital and a full stop. */
export function sentence(text) {
  const words = String(text).trim();
  return words.charAt(0).toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");
}
