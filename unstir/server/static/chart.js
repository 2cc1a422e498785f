// A curve over pictures seen, as SVG, in the colours of the page. Knows points; not what they mean.

import { draw, number } from "./tools.js";

const HEIGHT = 300, LEFT = 56, RIGHT = 10, TOP = 10, BOTTOM = 34;

/**
 * A chart of pairs [x, y], where y may be null; `name` says what it is, `width` how wide it is, in pixels. The upright
 * axis is logarithmic where it can be.
 */
export function chart(points, name, width) {
  const WIDTH = Math.max(240, Math.round(width));
  const told = points.filter(([, y]) => y !== null && Number.isFinite(y));
  const first = told[0], last = told[told.length - 1];
  const words = told.length ? `${name}, from ${number(first[1])} after ${count(first[0])} pictures to ${number(last[1])} after ${count(last[0])}` : `${name}: nothing yet`;
  const svg = draw("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words });
  if (!told.length) return svg;
  const low = Math.min(...told.map(([, y]) => y)), high = Math.max(...told.map(([, y]) => y));
  const is_log = low > 0 && high / low > 4;
  const scale = is_log ? Math.log : (y) => y;
  const [bottom, top] = high > low ? [scale(low), scale(high)] : [scale(low) - 1, scale(low) + 1];
  const right = Math.max(last[0], 1);
  const x_of = (x) => LEFT + ((WIDTH - LEFT - RIGHT) * x) / right;
  const y_of = (y) => TOP + ((HEIGHT - TOP - BOTTOM) * (top - scale(y))) / (top - bottom);
  for (const y of is_log ? ticks_of_powers(low, high) : ticks(low, high)) {
    svg.append(
      draw("line", { class: "gridline", x1: LEFT, x2: WIDTH - RIGHT, y1: y_of(y), y2: y_of(y) }),
      draw("text", { x: LEFT - 8, y: y_of(y) + 4, "text-anchor": "end", text: number(y, 3) }),
    );
  }
  for (const x of ticks(0, right)) svg.append(draw("text", { x: x_of(x), y: HEIGHT - BOTTOM + 18, "text-anchor": x === 0 ? "start" : "middle", text: short(x) }));
  svg.append(draw("text", { x: WIDTH - RIGHT, y: HEIGHT - 2, "text-anchor": "end", text: "pictures seen" }));
  const path = (pairs) => pairs.map(([x, y], at) => `${at ? "L" : "M"}${x_of(x).toFixed(1)} ${y_of(y).toFixed(1)}`).join("");
  if (told.length > 12) svg.append(draw("path", { class: "raw", d: path(told) }));
  svg.append(draw("path", { class: "curve", d: path(told.length > 12 ? smoothed(told) : told) }));
  return svg;
}

/** A running mean with a memory of a twentieth of the curve. */
function smoothed(points) {
  const keep = 1 - 1 / Math.max(2, points.length / 20);
  let mean = points[0][1];
  return points.map(([x, y]) => { mean = keep * mean + (1 - keep) * y; return [x, mean]; });
}

function ticks(low, high) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found;
}

function ticks_of_powers(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const times of [1, 2, 5]) found.push(times * 10 ** power);
  }
  return found.filter((y) => y >= low && y <= high);
}

export const count = (value) => Math.round(value).toLocaleString("en");
const short = (value) => (value >= 1e6 ? `${number(value / 1e6, 3)} M` : value >= 1e3 ? `${number(value / 1e3, 3)} k` : String(value));
