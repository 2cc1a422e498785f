// The stage: one drawing, from the first guess to the pictures. Knows how it looks; does not know where it comes from.

import { $, look_sharp, make, say } from "./tools.js";

const shown = look_sharp($("#shown"));
let current = null;

/** A drawing: what is known so far of one job's pictures. */
export function drawing({ prompt, number = 1, is_draft = false, is_way = false }) {
  return {
    id: "", prompt, is_draft, is_way, at: 0, status: null,
    sights: Array.from({ length: number }, () => ({ url: "", picture: null })),
  };
}

export const on_stage = () => current;

/** Show a drawing, from now on. What was shown stays until it has something to show. */
export function show(next) {
  current = next;
  render();
}

export function idle() {
  current = null;
  for (const element of [shown, $("#badge"), $("#strip"), $("#along"), $("#progress"), $("#acts")]) element.hidden = true;
  shown.removeAttribute("src");
  $("#idle").hidden = false;
  $("#state").textContent = "";
}

/** Draw what changed of a drawing, if it is the one on the stage. */
export function refresh(changed) {
  if (changed === current) render();
}

export const sight_of = (of) => of.sights[of.at] ?? of.sights[0];

let act = () => [];
/** `acts(picture)` makes the buttons of a finished picture. */
export function furnish(acts) {
  act = acts;
  $("#way-at").addEventListener("input", (event) => { if (current) { current.at = Number(event.target.value); render(); } });
}

function words_of(of) {
  const status = of.status;
  const kind = of.is_draft ? "Draft" : "Drawing";
  if (!status) return `${kind} ...`;
  if (status.state === "failed") return `It failed: ${status.error}`;
  if (status.state === "cancelled") return of.is_draft ? "" : "Cancelled.";
  if (status.state === "queued") {
    if (!status.position) return "Next in the queue.";
    return `Waiting: ${status.position} ${status.position === 1 ? "drawing is" : "drawings are"} before it.`;
  }
  if (status.state === "done") {
    const request = sight_of(of).picture?.request;
    const told = request ? `${of.is_draft ? "Draft" : "Drawn"} in ${request.steps} ${request.steps === 1 ? "step" : "steps"}, seed ${request.seed}.` : "Done.";
    const warnings = sight_of(of).picture?.warnings ?? [];
    return [told, ...warnings].join(" ");
  }
  return `${kind}, step ${status.step} of ${status.steps}`;
}

let acted = null;
function render() {
  const of = current;
  if (!of) return;
  const sight = sight_of(of);
  const is_done = of.status?.state === "done";
  if (sight.url) {
    if (shown.getAttribute("src") !== sight.url) shown.src = sight.url;
    const what = sight.picture ? (of.is_draft ? "Draft of" : "Picture of") : "Preview of";
    const alt = `${what} ${of.prompt}`;
    if (shown.alt !== alt) shown.alt = alt;
    shown.hidden = false;
    $("#idle").hidden = true;
  }
  const badge = $("#badge");
  badge.hidden = !sight.url || (is_done && !of.is_draft);
  badge.textContent = of.is_draft ? "draft" : of.status ? `${of.status.step}/${of.status.steps}` : "";
  const bar = $("#progress");
  bar.hidden = !of.status || ["done", "failed", "cancelled"].includes(of.status.state);
  if (of.status) { bar.max = Math.max(1, of.status.steps); bar.value = of.status.step; }
  const words = words_of(of);
  if ($("#state").textContent !== words) $("#state").textContent = words;
  render_strip(of);
  const ready = !of.is_draft && sight.picture ? sight.picture : null;
  $("#acts").hidden = !ready;
  if (ready !== acted) $("#acts").replaceChildren(...(ready ? act(ready) : []));
  acted = ready;
}

function render_strip(of) {
  const strip = $("#strip");
  strip.hidden = of.sights.length < 2;
  $("#along").hidden = strip.hidden || !of.is_way;
  if (strip.hidden) return;
  $("#way-at").max = of.sights.length - 1;
  $("#way-at").value = of.at;
  $("#way-at").setAttribute("aria-valuetext", `picture ${of.at + 1} of ${of.sights.length}`);
  if (strip.childElementCount !== of.sights.length || strip.of !== of) {
    strip.of = of;
    strip.replaceChildren(...of.sights.map((_, index) => make("button", { type: "button", click: () => { of.at = index; refresh(of); } }, make("img", { alt: "" }))));
  }
  of.sights.forEach((sight, index) => {
    const button = strip.children[index], image = button.firstElementChild;
    if (sight.url && image.getAttribute("src") !== sight.url) image.src = sight.url;
    image.hidden = !sight.url;
    button.setAttribute("aria-pressed", String(index === of.at));
    button.setAttribute("aria-label", `Picture ${index + 1} of ${of.sights.length}${sight.picture ? "" : ", not finished"}`);
  });
}

/** Tell of a drawing's end to who listens. */
export function announce(of) {
  if (of.status?.state === "done") say(of.sights.length > 1 ? `${of.sights.length} pictures of ${of.prompt} are drawn.` : `The picture of ${of.prompt} is drawn.`);
  else if (of.status?.state === "cancelled") say("Cancelled.");
  else if (of.status?.state === "failed") say(`It failed: ${of.status.error}`);
}
