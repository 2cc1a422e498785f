// Jobs under way: each is watched through its events; where those break off (a restart of the server, too many at
// once), it is asked after until they are back. Knows nothing of what is shown.

import { api, events, Gone, Refusal } from "./api.js";
import { later } from "./tools.js";

const MOST_STREAMS = 3; // a browser opens six connections to a host, for all of its tabs
const ENDED = new Set(["done", "failed", "cancelled"]);
let streams = 0;

export const is_ended = (status) => ENDED.has(status.state);

/**
 * Watch a job to its end.
 *
 * `on.status(status)`, `on.preview({index, url, step})`, `on.picture(picture, status)`, `on.end(status)`, and `on.lost()`
 * where the server knows it no more. Returns a function that stops watching.
 */
export function watch(id, on, { is_draft = false } = {}) {
  let source = null, is_over = false;
  const seen = new Set();

  const tell_pictures = (status) => {
    for (const picture of status.pictures ?? []) {
      if (seen.has(picture.index)) continue;
      seen.add(picture.index);
      on.picture?.(picture, status);
    }
  };
  const close = () => {
    if (!source) return;
    source.close();
    source = null;
    streams -= 1;
  };
  const end = (status) => {
    if (is_over) return;
    is_over = true;
    close();
    tell_pictures(status);
    on.end?.(status);
  };
  const take = (status) => {
    if (is_over) return;
    on.status?.(status);
    tell_pictures(status);
    if (is_ended(status)) end(status);
  };

  const listen = () => {
    streams += 1;
    source = events(id);
    const hear = (kind, act) => source.addEventListener(kind, (event) => { if (!is_over) act(JSON.parse(event.data)); });
    hear("status", take);
    hear("preview", (preview) => on.preview?.(preview));
    hear("picture", (picture) => {
      if (picture.pictures) return take(picture);
      if (seen.has(picture.index)) return;
      seen.add(picture.index);
      on.picture?.(picture, null);
    });
    hear("end", (status) => (status.state ? end(status) : poll()));
    source.addEventListener("error", () => {
      if (source?.readyState === EventSource.CLOSED) { close(); poll(); }
      else if (!is_over) on.stumble?.();
    });
  };

  const poll = async () => {
    for (let pause = 250; !is_over; pause = Math.min(2 * pause, 2000)) {
      try {
        const status = await api.job(id);
        if (is_over) return;
        on.status?.(status);
        tell_pictures(status);
        if (is_ended(status)) return end(status);
        if (streams < MOST_STREAMS) return listen();
      } catch (error) {
        if (is_over) return;
        if (error instanceof Refusal && error.status === 404) { is_over = true; on.lost?.(); return; }
        if (error instanceof Gone) on.stumble?.();
      }
      await later(pause);
    }
  };

  if (is_draft || streams < MOST_STREAMS) listen();
  else poll();
  return () => { is_over = true; close(); };
}
