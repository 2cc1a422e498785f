// A recipe as people read it: names and values, and what differs between two.

import { make, number } from "./tools.js";

/** The lines of a request; `beside` holds what is known apart from it: model, warnings. */
export function lines(request, beside = {}) {
  const edit = request.edit, blend = request.blend;
  return [
    ["Prompt", request.prompt],
    ["Not in it", request.negative],
    ["Seed", request.seed],
    ["Size", `${request.width} × ${request.height}`],
    ["Steps", request.steps],
    ["Sampler", request.sampler],
    ["Grid", request.grid === request.sampler ? "" : request.grid],
    ["Guidance", number(request.guidance_scale)],
    ["Method", request.steering?.method === "plain" ? "" : request.steering?.method],
    ["Rescaled", request.steering?.rescale ? number(request.steering.rescale) : ""],
    ["Between", request.guidance_interval ? `log-SNR ${request.guidance_interval.map((end) => number(end)).join(" and ")}` : ""],
    ["Eta", request.eta ? number(request.eta) : ""],
    ["Words", request.syntax === "weighted" ? "weighted" : ""],
    ["Tile", request.tile ? "repeats without a seam" : ""],
    ["From", edit ? `a picture, strength ${number(edit.strength)}${edit.mask ? ", with a mask" : ""}${edit.extend?.some(Boolean) ? ", extended" : ""}` : ""],
    ["On the way", blend ? `${number(blend.share, 3)}${blend.prompt ? ` to ${blend.prompt}` : ""}` : ""],
    ["Model", beside.model],
    ["Precision", request.precision],
    ["Told", (beside.warnings ?? []).join(" ")],
  ].filter(([, value]) => value !== "" && value !== null && value !== undefined);
}

/** What a picture is called: its prompt, or the place on the way that it shows. */
export function name_of(request) {
  const to = request.blend?.prompt;
  if (to && request.blend.share === 1) return to;
  return to && request.blend.share > 0 && to !== request.prompt ? `${request.prompt}, ${number(100 * request.blend.share, 2)} % on the way to ${to}` : request.prompt;
}

/** Fill a description list with a recipe. */
export function fill_recipe(list, request, beside = {}) {
  list.replaceChildren(...lines(request, beside).flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })]));
}

/** Rows [name, of a, of b] of what differs between two requests. */
export function differences(a, b) {
  const of_a = new Map(lines(a)), of_b = new Map(lines(b));
  const names = new Set([...of_a.keys(), ...of_b.keys()]);
  return [...names].map((name) => [name, of_a.get(name) ?? "", of_b.get(name) ?? ""]).filter(([, x, y]) => String(x) !== String(y));
}
