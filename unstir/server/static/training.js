// The page that shows a training while it goes on: where it stands, its curves, what it draws.

import { api, Gone, Refusal } from "./api.js";
import { chart, count } from "./chart.js";
import { $, banner, later, make, memory, number, say } from "./tools.js";

const PAUSE = 2000; // milliseconds between two looks at a run that goes on
const REST = 10000; // at one that does not
const NAMES = {
  loss: "Loss", x0_error: "Error on x0", gradient_norm: "Gradient norm", learning_rate: "Learning rate",
  images_per_second: "Pictures a second", loss_by_band: "Loss", x0_error_by_band: "Error on x0",
};
const STATES = { "going on": "going on", finished: "finished", stopped: "stopped in order", died: "died without a word" };

let told = null; // the run on the page
let at_newest = true; // whether the newest sheet is looked at
let wake = () => {};

function title(name) {
  const words = NAMES[name] ?? name.replaceAll("_", " ").replace("/", ", ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} minutes`;
  return `${number(seconds / 3600, 2)} hours`;
}

function nothing(words) {
  $("#none-told").textContent = words;
  $("#none").hidden = false;
  $("#told-run").hidden = true;
}

function render(run) {
  const is_other = told?.name !== run.name, was = told?.state;
  told = run;
  $("#none").hidden = true;
  $("#told-run").hidden = false;
  const left = run.seconds_left === null ? "" : `, about ${duration(run.seconds_left)} left`;
  $("#standing").textContent = `${run.recipe ? `Recipe ${run.recipe}, ` : ""}${STATES[run.state]}${left}`;
  $("#standing").dataset.state = run.state;
  $("#seen").max = Math.max(1, run.planned_images);
  $("#seen").value = run.images_seen;
  const share = run.planned_images ? ` (${Math.floor((100 * run.images_seen) / run.planned_images)} %)` : "";
  $("#seen-told").textContent = `${count(run.images_seen)} of ${count(run.planned_images)} pictures seen${share}`;
  if (!is_other && was !== run.state) say(`The run is now ${STATES[run.state]}.`);
  render_curves(run, is_other);
  render_sheets(run, is_other);
  $("#numbers").replaceChildren(...Object.entries(run.numbers).filter(([, value]) => value !== null).map(([name, value]) => make("div", {}, make("dt", { text: title(name) }), make("dd", { text: number(value) }))));
  render_bands(run.bands);
}

function render_curves(run, is_other) {
  const names = Object.keys(run.curves);
  const select = $("#curve");
  const chosen = !is_other && names.includes(select.value) ? select.value : names.includes("loss") ? "loss" : names[0];
  if ([...select.options].map((option) => option.value).join() !== names.join()) select.replaceChildren(...names.map((name) => new Option(title(name), name)));
  if (chosen) select.value = chosen;
  select.disabled = names.length === 0;
  $("#loss-title").textContent = chosen ? title(chosen) : "Curves";
  $("#chart").replaceChildren(chosen ? chart(run.curves[chosen], title(chosen), $("#chart").clientWidth) : make("p", { class: "state", text: "It has told nothing yet." }));
}

function render_sheets(run, is_other) {
  const sheets = [...run.previews].reverse(); // oldest first, as a slider goes
  $("#no-preview").hidden = sheets.length > 0;
  $("#sheet").hidden = sheets.length === 0;
  if (!sheets.length) return;
  const slider = $("#preview-at");
  if (is_other) at_newest = true;
  slider.max = sheets.length - 1;
  slider.disabled = sheets.length < 2;
  if (at_newest) slider.value = slider.max;
  const sheet = sheets[Number(slider.value)];
  if ($("#preview").getAttribute("src") !== sheet.url) $("#preview").src = sheet.url;
  $("#preview").alt = `Sheet of pictures that the model drew after ${count(sheet.images_seen)} pictures seen`;
  $("#preview-told").textContent = count(sheet.images_seen);
  slider.setAttribute("aria-valuetext", `after ${count(sheet.images_seen)} pictures`);
}

function render_bands(bands) {
  const rows = Object.entries(bands);
  $("#bands-card").hidden = rows.length === 0;
  if (!rows.length) return;
  const names = [...new Set(rows.flatMap(([, row]) => Object.keys(row)))];
  $("#bands").replaceChildren(
    make("thead", {}, make("tr", {}, make("td", {}), ...names.map((name) => make("th", { scope: "col", text: name })))),
    make("tbody", {}, ...rows.map(([name, row]) => make("tr", {}, make("th", { scope: "row", text: title(name) }), ...names.map((band) => make("td", { text: row[band] === null || row[band] === undefined ? "" : number(row[band]) }))))),
  );
}

/** The runs that there are, and the one that is looked at. */
async function look() {
  const { runs } = await api.runs();
  const select = $("#run");
  $("#choice").hidden = runs.length < 2;
  if (!runs.length) {
    nothing("No training is shown here. Start the server with --runs and the folder that your trainings are in.");
    return REST;
  }
  const names = runs.map((run) => run.name);
  const wanted = select.value || decodeURIComponent(location.hash.slice(1)) || memory.read("run");
  if ([...select.options].map((option) => option.value).join() !== names.join()) {
    select.replaceChildren(...runs.map((run) => new Option(run.name, run.name)));
  }
  select.value = names.includes(wanted) ? wanted : (runs.find((run) => run.state === "going on") ?? runs[runs.length - 1]).name;
  $("#title").textContent = `Training: ${select.value}`;
  document.title = `unstir: training ${select.value}`;
  const run = await api.run(select.value);
  if (run.name === select.value) render(run);
  return run.state === "going on" ? PAUSE : REST;
}

async function go_on() {
  $("#run").addEventListener("change", () => {
    memory.write("run", $("#run").value);
    history.replaceState(null, "", `#${encodeURIComponent($("#run").value)}`);
    wake();
  });
  $("#curve").addEventListener("change", () => { if (told) render_curves(told, false); });
  $("#preview-at").addEventListener("input", () => {
    at_newest = $("#preview-at").value === $("#preview-at").max;
    if (told) render_sheets(told, false);
  });
  addEventListener("resize", () => { if (told) render_curves(told, false); });
  addEventListener("visibilitychange", () => { if (!document.hidden) wake(); });
  for (;;) {
    let pause = PAUSE;
    try {
      if (!document.hidden) pause = await look();
      banner("");
    } catch (error) {
      if (error instanceof Gone) banner("The server does not answer. Trying again …");
      else if (error instanceof Refusal && error.status === 404 && !told) nothing("No training is shown here. Start the server with --runs and the folder that your trainings are in.");
      else if (error instanceof Refusal) banner(error.message);
      else throw error;
    }
    document.documentElement.dataset.ready = "true";
    await Promise.race([later(pause), new Promise((done) => { wake = done; })]);
  }
}

go_on();
