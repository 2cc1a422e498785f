// The page for drawing: what a keystroke, a button or a picture sets going. It joins the form, the stage, the jobs and
// the gallery, which do not know each other.

import { api, Gone, picture_url, Refusal } from "./api.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import { is_ended, watch } from "./jobs.js";
import * as stage from "./stage.js";
import * as start from "./start.js";
import { $, banner, furnish_dialogs, later, make, memory, say, toast, token } from "./tools.js";
import * as viewer from "./viewer.js";

const PAUSE = 80; // milliseconds without a keystroke before a draft is asked for
const page = token(); // of this tab: its drafts displace each other, and nobody else's
const finals = new Map(); // id -> { of, stop, row }
let draft = null; // { of, stop }
let draft_number = 0;
let last_drawn = ""; // request of the last final drawing

const is_under_way = (of) => !of.status || !is_ended(of.status);

// What becomes of a job on the stage.

function follow(of, id, on = {}) {
  of.id = id;
  return watch(id, {
    status(status) {
      online();
      of.status = status;
      stage.refresh(of);
      on.status?.(status);
    },
    preview({ index, url, step, steps }) {
      const sight = of.sights[index];
      if (of.status && !is_ended(of.status)) {
        of.status = { ...of.status, state: "running", position: 0, step, steps };
        on.status?.(of.status);
      }
      if (sight && !sight.picture) sight.url = url;
      stage.refresh(of);
    },
    picture(picture) {
      const sight = of.sights[picture.index];
      if (!sight) return;
      sight.picture = { ...picture, job: id };
      // The preview stays until the picture has come: nothing flickers.
      const image = new Image();
      image.src = picture.url ?? picture_url(id, picture.index);
      image.decode().catch(() => {}).finally(() => { sight.url = image.src; stage.refresh(of); });
      on.picture?.(sight.picture);
    },
    end(status) {
      of.status = status;
      stage.refresh(of);
      on.end?.(status);
    },
    lost() {
      of.status = { state: of.is_draft ? "cancelled" : "failed", error: "the server knows this drawing no more", step: 0, steps: 1, position: 0 };
      stage.refresh(of);
      on.end?.(of.status);
    },
    stumble: offline,
  }, { is_draft: of.is_draft });
}

// While the server is away.

let is_waiting = false;
function online() { banner(""); }
async function offline() {
  banner("The server does not answer. What was accepted is not lost; trying again …");
  if (is_waiting) return;
  is_waiting = true;
  for (;;) {
    await later(1000);
    try { await api.models(); break; } catch (error) { if (error instanceof Refusal) break; }
  }
  is_waiting = false;
  online();
  say("The server is back.");
  gallery.refresh();
}

// Draws while somebody types.

let timer = 0;
function soon() {
  clearTimeout(timer);
  draft_number += 1;
  if (!$("#live").checked) return;
  timer = setTimeout(draw_draft, PAUSE);
}

function drop_draft() {
  clearTimeout(timer);
  draft_number += 1;
  if (!draft) return;
  draft.stop();
  if (is_under_way(draft.of)) api.cancel(draft.of.id).catch(() => {});
  draft = null;
}

async function draw_draft() {
  const asked = form.request();
  if (!asked.prompt.trim()) {
    drop_draft();
    if (stage.on_stage()?.is_draft) stage.idle();
    form.clear_wrong();
    return;
  }
  const invalid = form.invalid();
  if (invalid) { form.show_wrong(invalid, { is_quiet: true }); return; }
  asked.number = 1;
  asked.draft = true;
  asked.page = page;
  if (!form.has_own_steps()) asked.steps = form.model()?.fewest ?? asked.steps;
  const edit = start.edit();
  if (edit) asked.edit = edit;
  if (edit && !edit.fit) { delete asked.width; delete asked.height; }
  const own = (draft_number += 1);
  try {
    const job = await api.submit(asked);
    if (own !== draft_number) return; // a later keystroke has its own, which displaces this one at the server
    draft?.stop();
    form.clear_wrong();
    const of = stage.drawing({ prompt: asked.prompt, is_draft: true });
    draft = { of, stop: follow(of, job.id) };
    stage.show(of);
    tell_jobs();
  } catch (error) {
    if (own !== draft_number) return;
    if (error instanceof Gone) offline();
    else if (error.status === 429) $("#state").textContent = "The server is busy; the draft waits for your next keystroke.";
    else if (error instanceof Refusal) form.show_wrong(error, { is_quiet: true });
    else throw error;
  }
}

// Drawings that are kept.

/** Draw what a request asks for; `of` tells how it looks on the stage. */
async function draw(asked, { is_way = false } = {}) {
  clearTimeout(timer);
  draft_number += 1; // a draft that is on its way comes too late
  form.clear_wrong();
  const count = is_way ? asked.way.frames : asked.number ?? 1;
  const of = stage.drawing({ prompt: asked.prompt, number: count, is_way });
  // What a draft has shown of it stays until there is something better.
  const before = stage.on_stage();
  if (before?.is_draft && before.prompt === asked.prompt) of.sights[0].url = stage.sight_of(before).url;
  const key = token();
  $("#draw").disabled = true;
  try {
    const job = await accepted(asked, key);
    drop_draft();
    stage.show(of);
    begin(of, job.id);
    return of;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    const wait = error.status === 429 && error.seconds ? `; it will have room in about ${error.seconds} s` : "";
    form.show_wrong(new Refusal(error.message.replace(/\.$/, "") + wait, error));
    return null;
  } finally { $("#draw").disabled = false; }
}

/** Hand a request in; where nobody answers, again and again under the same key, so that it is drawn once. */
async function accepted(asked, key) {
  for (;;) {
    try { return await api.submit(asked, { key }); } catch (error) {
      if (!(error instanceof Gone)) throw error;
      offline();
      await later(1000);
    }
  }
}

function begin(of, id) {
  const bar = make("progress", { value: 0, max: 1, "aria-label": `Drawing ${of.prompt}` });
  const told = make("span", { class: "state", text: "Handed in" });
  const row = make(
    "li", {},
    make("span", { class: "name", text: of.prompt }), told,
    make("button", { type: "button", text: "Cancel", "aria-label": `Cancel ${of.prompt}`, click: () => cancel(id) }), bar,
  );
  const entry = { of, row, stop: () => {} };
  finals.set(id, entry);
  $("#jobs").append(row);
  tell_jobs();
  entry.stop = follow(of, id, {
    status(status) {
      bar.max = Math.max(1, status.steps);
      bar.value = status.step;
      told.textContent = status.state === "queued"
        ? status.position ? `waiting, ${status.position} before it` : "next in the queue"
        : `step ${status.step} of ${status.steps}`;
    },
    picture: gallery.add,
    end(status) {
      finals.delete(id);
      row.remove();
      tell_jobs();
      stage.announce(of);
      if (status.state === "failed") form.show_wrong(new Refusal(status.error || "the drawing failed"), { is_quiet: true });
    },
  });
}

function tell_jobs() {
  memory.write_own("jobs", [...finals].map(([id, { of }]) => ({ id, prompt: of.prompt, number: of.sights.length, is_way: of.is_way })));
  // One drawing is told of on the stage; the list is for those beside it.
  const others = [...finals.values()].filter(({ of }) => of !== stage.on_stage());
  $("#jobs").hidden = finals.size < 2 && others.length === 0;
  $("#cancel").hidden = finals.size === 0;
}

async function cancel(id) {
  try { await api.cancel(id); } catch (error) {
    if (error instanceof Gone) offline();
    else if (error.status !== 404) toast(form.sentence(error.message));
  }
}

function cancel_newest() {
  const shown = stage.on_stage();
  const id = shown && finals.has(shown.id) ? shown.id : [...finals.keys()].pop();
  if (id) { cancel(id); return; }
  if (draft && is_under_way(draft.of)) {
    drop_draft();
    say("The draft is cancelled.");
  }
}

// Buttons and keys.

function submit() {
  const asked = form.request();
  if (!asked.prompt.trim()) {
    form.show_wrong(new Refusal('say what to draw, for instance "a red heart"', { field: "prompt" }));
    return;
  }
  const invalid = form.invalid();
  if (invalid) { form.show_wrong(invalid); return; }
  const edit = start.edit();
  if (edit) asked.edit = edit;
  if (edit && !edit.fit) { delete asked.width; delete asked.height; }
  if (!form.is_locked() && JSON.stringify(asked) === last_drawn) {
    form.roll();
    asked.seed = form.request().seed;
  }
  last_drawn = JSON.stringify(asked);
  draw(asked);
}

function submit_way() {
  const asked = form.request();
  const to_prompt = $("#to-prompt").value.trim();
  if (!asked.prompt.trim()) { form.show_wrong(new Refusal("say above what is drawn at this end of the way", { field: "prompt" })); return; }
  if (!to_prompt) { form.show_wrong(new Refusal("say what is drawn at the other end", { field: "way" })); return; }
  const invalid = form.invalid();
  if (invalid) { form.show_wrong(invalid); return; }
  delete asked.number;
  asked.way = { to_prompt, frames: Number($("#frames").value) || 8 };
  draw(asked, { is_way: true });
}

/** What a picture was drawn with, asked for anew. */
function again(request) {
  form.fill(request, "");
  return form.request();
}

const verbs = {
  open: viewer.open,
  compare: viewer.compare,
  async take(picture) {
    await take_recipe(picture.request, picture.model);
    $("#prompt").focus();
  },
  async redo(picture) {
    await take_recipe(picture.request, picture.model);
    const asked = form.request();
    const edit = start.edit();
    if (edit) asked.edit = edit;
    if (edit && !edit.fit) { delete asked.width; delete asked.height; }
    last_drawn = JSON.stringify(asked);
    draw(asked);
  },
  vary(picture) {
    const asked = again(picture.request);
    for (const name of ["width", "height", "sampler", "grid", "eta"]) delete asked[name];
    form.roll();
    Object.assign(asked, { number: 4, seed: form.request().seed, edit: { source: gallery.key_of(picture), strength: 0.95 } });
    draw(asked);
  },
  edit(picture) {
    form.fill({ ...picture.request, sampler: "tuned", grid: "tuned" }, picture.model);
    start.start_from(picture);
    $("#strength").focus();
    $("#start-panel").scrollIntoView({ block: "nearest" });
  },
  between(a, b) {
    const asked = again(a.request);
    for (const name of ["number", "width", "height", "sampler", "grid", "eta", "steps", "guidance", "tile"]) delete asked[name];
    asked.edit = { source: gallery.key_of(a) };
    asked.way = { to_source: gallery.key_of(b), to_prompt: b.request.prompt, frames: Number($("#frames").value) || 8 };
    draw(asked, { is_way: true });
  },
  remove(picture) {
    viewer.forget(picture);
    const next = gallery.hide(picture);
    (next?.querySelector(".thumb") ?? $("#search")).focus();
    const shown = stage.on_stage();
    if (shown && !shown.is_draft && stage.sight_of(shown).picture && gallery.key_of(stage.sight_of(shown).picture) === gallery.key_of(picture)) stage.idle();
    toast("The picture is deleted.", {
      label: "Undo",
      undo() { gallery.unhide(picture)?.querySelector(".thumb").focus(); },
      async after() {
        try { await api.remove(picture.job, picture.index, { keepalive: true }); gallery.drop(picture); } catch (error) {
          if (error.status === 404) { gallery.drop(picture); return; }
          gallery.unhide(picture);
          toast(error instanceof Gone ? "The server does not answer; the picture is still there." : form.sentence(error.message));
        }
      },
    });
  },
};

/** Bring a recipe into the form, and the picture that it started from where that is still here. */
async function take_recipe(request, model) {
  form.fill(request, model);
  start.set_start(null, { is_quiet: true });
  if (request.edit && !request.blend && !(await start.take_edit(request.edit))) toast("The picture that this one started from is not here; the rest of its recipe is in the form.");
  if (request.blend) toast("This picture lies on a way to another one; its recipe is taken without the way.");
  say("The recipe is in the form.");
}

// Setting out.

function furnish() {
  furnish_dialogs();
  stage.furnish((picture) => viewer.acts(picture));
  viewer.furnish(verbs);
  start.furnish({
    changed: soon,
    async take_recipe(request, model) { await take_recipe(request, model); soon(); $("#prompt").focus(); },
  });
  const ask = $("#ask");
  ask.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  ask.addEventListener("input", (event) => {
    if (["live", "to-prompt", "frames", "number", "way-at", "file"].includes(event.target.id)) { form.remember(); return; }
    if (event.target.id === "model") form.fit_model(true);
    form.remember();
    soon();
  });
  $("#live").addEventListener("change", () => { form.remember(); if ($("#live").checked) soon(); else drop_draft(); });
  $("#draw-way").addEventListener("click", submit_way);
  $("#cancel").addEventListener("click", cancel_newest);
  $("#dice").addEventListener("click", () => { form.roll(); soon(); });
  $("#lock").addEventListener("click", () => { form.lock(!form.is_locked()); say(form.is_locked() ? "The seed is kept." : "The seed may change."); });
  $("#defaults").addEventListener("click", () => { form.fit_model(true); form.remember(); soon(); say("These are the model's own settings."); });
  for (const panel of ["start-panel", "way-panel", "more-panel"]) {
    const kept = memory.read(panel);
    if (kept !== null) $(`#${panel}`).open ||= kept;
    $(`#${panel}`).addEventListener("toggle", () => memory.write(panel, $(`#${panel}`).open));
  }
  document.addEventListener("keydown", (event) => {
    if ($("dialog[open]") || event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); submit(); }
    if (event.key === "Escape") cancel_newest();
  });
  addEventListener("visibilitychange", () => { if (!document.hidden) gallery.refresh(); });
  addEventListener("pagehide", () => {
    if (draft && is_under_way(draft.of)) api.cancel(draft.of.id, { keepalive: true }).catch(() => {});
  });
}

async function facts() {
  for (;;) {
    try { return await api.models(); } catch (error) {
      if (error instanceof Refusal) { banner(form.sentence(error.message)); throw error; }
      banner("The server does not answer. Trying again …");
      await later(1000);
    }
  }
}

async function set_out() {
  const told = await facts();
  online();
  form.furnish(told);
  furnish();
  document.documentElement.dataset.ready = "true"; // for whoever waits for it
  const written = $("#prompt").value;
  await gallery.furnish(verbs);
  for (const kept of memory.read_own("jobs") ?? []) {
    const of = stage.drawing(kept);
    stage.show(of);
    begin(of, kept.id);
  }
  if ($("#prompt").value !== written) soon();
}

set_out();
