// The server's own API: the only module that sends anything. It speaks to the host that the page came from, and knows
// nothing of the page.

/** What the server refused, in its own sentence; `field` names what is at fault. */
export class Refusal extends Error {
  constructor(message, { field = "", status = 0, seconds = 0 } = {}) {
    super(message);
    this.field = field;
    this.status = status;
    this.seconds = seconds;
  }
}

/** Nobody answers: the server is gone, or on its way back. */
export class Gone extends Error {}

async function ask(method, path, { json, body, headers = {}, signal, keepalive } = {}) {
  const sent = { method, signal, keepalive, headers: { ...headers }, body };
  if (json !== undefined) {
    sent.body = JSON.stringify(json);
    sent.headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(`/api${path}`, sent);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Gone("the server does not answer");
  }
  if (answer.ok) {
    if (answer.status === 204) return null;
    return answer.headers.get("Content-Type")?.includes("json") ? answer.json() : answer.blob();
  }
  const told = await answer.json().catch(() => ({}));
  const { message, field } = told.error ?? {};
  const seconds = Number(answer.headers.get("Retry-After")) || 0;
  throw new Refusal(message || sentence_of(answer.status), { field: field ?? "", status: answer.status, seconds });
}

function sentence_of(status) {
  if (status === 401 || status === 403) return "this server wants its token: open it with ?token=... at the end of its address";
  if (status === 413) return "that is larger than this server takes";
  if (status === 429) return "this server is busy; try again in a moment";
  return `the server answered with ${status}; its log says more`;
}

export const picture_url = (job, index) => `/api/pictures/${job}/${index}`;
export const level_url = (job, index, t) => (t > 0 ? `${picture_url(job, index)}/levels/${t.toFixed(2)}` : picture_url(job, index));
export const download_url = (job, index) => `${picture_url(job, index)}?download=1`;
export const upload_url = (name) => `/api/uploads/${name}`;

export const api = {
  models: () => ask("GET", "/models"),
  submit: (json, { key = "", signal } = {}) =>
    ask("POST", "/jobs", { json, signal, headers: key ? { "Idempotency-Key": key } : {} }),
  job: (id) => ask("GET", `/jobs/${id}`),
  cancel: (id, { keepalive = false } = {}) => ask("DELETE", `/jobs/${id}`, { keepalive }),
  pictures: ({ search = "", before = "", limit = 24, signal } = {}) =>
    ask("GET", `/pictures?${new URLSearchParams({ ...(search && { search }), ...(before && { before }), limit })}`, { signal }),
  recipe: (job, index) => ask("GET", `/pictures/${job}/${index}/recipe`),
  remove: (job, index, { keepalive = false } = {}) => ask("DELETE", `/pictures/${job}/${index}`, { keepalive }),
  keep: (blob) => ask("POST", "/uploads", { body: blob, headers: { "Content-Type": blob.type || "application/octet-stream" } }),
  runs: () => ask("GET", "/runs"),
  run: (name) => ask("GET", `/runs/${encodeURIComponent(name)}`),
};

/** The events of a job; the browser takes the thread up again by itself while the server only stumbles. */
export const events = (id) => new EventSource(`/api/jobs/${id}/events`);
