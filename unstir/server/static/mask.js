// The painter of masks: white is drawn anew, black stays. By pointer or by keys; one pixel of the mask is one of the
// picture. Knows nothing of what becomes of the mask.

import { $ } from "./tools.js";

const canvas = $("#canvas");
const dialog = $("#painter");
const pen = canvas.getContext("2d", { willReadFrequently: true });
let picture = null; // HTMLImageElement
let mask = null; // Uint8Array, 1 is painted
let undone = []; // masks before each stroke
let at = { x: 0, y: 0 }; // of the brush, in pixels
let is_down = false, is_erasing = false, is_seen = false;
let answer = null;

const brush = () => Number($("#brush").value);

/** Open the painter over a picture, with a mask to go on from; a PNG blob, or null where it was closed. */
export async function paint(picture_url, mask_url = "") {
  picture = await loaded(picture_url);
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  mask = new Uint8Array(canvas.width * canvas.height);
  if (mask_url) mask = bits_of(await loaded(mask_url));
  undone = [];
  at = { x: Math.floor(canvas.width / 2), y: Math.floor(canvas.height / 2) };
  is_down = false;
  is_seen = false;
  const largest = Math.max(8, Math.round(Math.max(canvas.width, canvas.height) / 2));
  $("#brush").max = largest;
  $("#brush").value = Math.max(2, Math.round(largest / 3));
  hold_eraser(false);
  tell_brush();
  render();
  dialog.showModal();
  canvas.focus({ focusVisible: false });
  return new Promise((resolve) => { answer = resolve; });
}

async function loaded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

function bits_of(image) {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const other = copy.getContext("2d");
  other.drawImage(image, 0, 0, copy.width, copy.height);
  const { data } = other.getImageData(0, 0, copy.width, copy.height);
  return Uint8Array.from({ length: mask.length }, (_, pixel) => (data[4 * pixel] > 0 ? 1 : 0));
}

function render() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture, 0, 0);
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  const { data } = pixels;
  const stripe = Math.max(1, Math.round(canvas.width / 64));
  for (let pixel = 0; pixel < mask.length; pixel += 1) {
    if (!mask[pixel]) continue;
    // Ink with pale stripes, so that it is told from a picture of any colour, and by more than its colour.
    const x = pixel % canvas.width, y = Math.floor(pixel / canvas.width);
    const colour = Math.floor((x + y) / stripe) % 4 === 0 ? [232, 237, 255] : [47, 63, 191];
    colour.forEach((ink, channel) => { data[4 * pixel + channel] += 0.8 * (ink - data[4 * pixel + channel]); });
    data[4 * pixel + 3] = 255;
  }
  pen.putImageData(pixels, 0, 0);
  if (is_seen) {
    const unit = Math.max(0.5, canvas.width / 300);
    for (const [colour, width] of [["#ffffff", 3 * unit], ["#17203a", unit]]) {
      pen.beginPath();
      pen.lineWidth = width;
      pen.strokeStyle = colour;
      pen.arc(at.x + 0.5, at.y + 0.5, Math.max(1, brush() / 2), 0, 2 * Math.PI);
      pen.stroke();
    }
  }
  const painted = mask.reduce((sum, bit) => sum + bit, 0);
  $("#take-mask").disabled = painted === 0;
  const words = painted === 0 ? "Nothing is painted yet." : `${Math.max(1, Math.round((100 * painted) / mask.length))} % of the picture is drawn anew.`;
  if ($("#painter-state").textContent !== words) $("#painter-state").textContent = words;
}

function dab(x, y) {
  const radius = brush() / 2, value = is_erasing ? 0 : 1;
  for (let row = Math.max(0, Math.floor(y - radius)); row <= Math.min(canvas.height - 1, Math.ceil(y + radius)); row += 1) {
    for (let column = Math.max(0, Math.floor(x - radius)); column <= Math.min(canvas.width - 1, Math.ceil(x + radius)); column += 1) {
      if ((column - x) ** 2 + (row - y) ** 2 <= Math.max(0.25, radius * radius)) mask[row * canvas.width + column] = value;
    }
  }
}

function stroke_to(next) {
  const length = Math.max(1, Math.ceil(Math.hypot(next.x - at.x, next.y - at.y)));
  for (let step = 1; step <= length; step += 1) dab(at.x + ((next.x - at.x) * step) / length, at.y + ((next.y - at.y) * step) / length);
  at = next;
}

function begin() {
  undone.push(mask.slice());
  if (undone.length > 50) undone.shift();
  $("#undo").disabled = false;
}

/** Where on the picture a pointer is: the canvas is shown as large as it fits, in the middle. */
function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = Math.min(box.width / canvas.width, box.height / canvas.height);
  return {
    x: Math.floor((event.clientX - box.left - (box.width - scale * canvas.width) / 2) / scale),
    y: Math.floor((event.clientY - box.top - (box.height - scale * canvas.height) / 2) / scale),
  };
}

function hold_eraser(is_on) {
  is_erasing = is_on;
  $("#pen").setAttribute("aria-pressed", String(!is_on));
  $("#eraser").setAttribute("aria-pressed", String(is_on));
}

function tell_brush() {
  $("#brush-told").textContent = String(brush());
  $("#undo").disabled = undone.length === 0;
}

function move_by_key(event) {
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const far = event.shiftKey ? Math.max(8, Math.round(canvas.width / 8)) : Math.max(1, Math.round(canvas.width / 64));
  const [x, y] = ways[event.key];
  const next = {
    x: Math.min(canvas.width - 1, Math.max(0, at.x + far * x)),
    y: Math.min(canvas.height - 1, Math.max(0, at.y + far * y)),
  };
  if (is_down) stroke_to(next);
  else at = next;
}

function press(event) {
  if (event.ctrlKey || event.metaKey) {
    if (event.key !== "z") return;
    undo();
  } else if (event.key.startsWith("Arrow")) move_by_key(event);
  else if (event.key === " ") {
    is_down = !is_down;
    if (is_down) { begin(); dab(at.x, at.y); }
  } else if (event.key === "e" || event.key === "E") hold_eraser(!is_erasing);
  else if (event.key === "[" || event.key === "]") {
    $("#brush").value = brush() + (event.key === "]" ? 1 : -1);
    tell_brush();
  } else return;
  event.preventDefault();
  is_seen = true;
  render();
  if (event.key === " ") $("#painter-state").textContent = is_down ? `The brush is down at ${at.x}, ${at.y}.` : "The brush is up.";
}

function undo() {
  mask = undone.pop() ?? mask;
  tell_brush();
  render();
}

function change(make) {
  begin();
  mask = mask.map(make);
  render();
}

async function take() {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const other = copy.getContext("2d");
  const pixels = other.createImageData(copy.width, copy.height);
  mask.forEach((bit, pixel) => pixels.data.set([255 * bit, 255 * bit, 255 * bit, 255], 4 * pixel));
  other.putImageData(pixels, 0, 0);
  const blob = await new Promise((done) => { copy.toBlob(done, "image/png"); });
  answer?.(blob);
  answer = null;
  dialog.close();
}

let is_dragging = false;
canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  event.preventDefault();
  canvas.focus({ focusVisible: false });
  canvas.setPointerCapture(event.pointerId);
  begin();
  is_dragging = true;
  is_seen = false;
  at = place(event);
  dab(at.x, at.y);
  render();
});
canvas.addEventListener("pointermove", (event) => {
  if (!is_dragging) return;
  for (const one of event.getCoalescedEvents?.() ?? [event]) stroke_to(place(one));
  stroke_to(place(event));
  render();
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { is_dragging = false; });
canvas.addEventListener("keydown", press);
canvas.addEventListener("blur", () => { is_down = false; });
$("#brush").addEventListener("input", () => { tell_brush(); render(); });
$("#pen").addEventListener("click", () => hold_eraser(false));
$("#eraser").addEventListener("click", () => hold_eraser(true));
$("#undo").addEventListener("click", undo);
$("#clear").addEventListener("click", () => change(() => 0));
$("#invert").addEventListener("click", () => change((bit) => 1 - bit));
$("#take-mask").addEventListener("click", take);
dialog.addEventListener("close", () => { answer?.(null); answer = null; });
