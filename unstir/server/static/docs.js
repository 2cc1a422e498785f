// The description of the API, made readable: /openapi.json as contents, operations and shapes of objects. Knows OpenAPI
// 3.1 as far as this server writes it; knows nothing of what the operations do.

import { $, banner, make } from "./tools.js";

let told = {};

const named = (ref) => ref.split("/").pop();
/** What a reference stands for; anything else is itself. */
const resolved = (value) => (value?.$ref ? value.$ref.slice(2).split("/").reduce((at, key) => at[key], told) : value);

/** Text with `words` in backquotes as code. */
function prose(text) {
  return String(text ?? "").split("`").map((part, index) => (index % 2 ? make("code", { text: part }) : part));
}

/** The type of a value, in words; what it is made of is linked. */
function sort_of(schema) {
  if (!schema || !Object.keys(schema).length) return ["anything"];
  if (schema.$ref) return [make("a", { href: `#shape-${named(schema.$ref)}`, text: named(schema.$ref) })];
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return joined(choices.map(sort_of), " or ");
  if (schema.allOf) return schema.allOf.flatMap(sort_of);
  if (schema.const !== undefined) return [make("code", { text: JSON.stringify(schema.const) })];
  if (schema.enum) return joined(schema.enum.map((value) => [make("code", { text: value })]), ", ");
  if (schema.type === "array" && schema.prefixItems) return ["list of ", ...joined(schema.prefixItems.map(sort_of), ", ")];
  if (schema.type === "array") return ["list of ", ...sort_of(schema.items)];
  if (schema.type === "object" && schema.additionalProperties) return ["object of ", ...sort_of(schema.additionalProperties)];
  const words = { integer: "whole number", string: schema.format === "binary" ? "file" : "text", boolean: "true or false" };
  return [`${words[schema.type] ?? schema.type}${range(schema)}`];
}

const joined = (parts, by) => parts.flatMap((part, index) => (index ? [by, ...part] : part));

function range(schema) {
  const low = schema.minimum ?? schema.exclusiveMinimum, high = schema.maximum ?? schema.exclusiveMaximum;
  if (low !== undefined && high !== undefined) return ` from ${low} to ${high}`;
  if (low !== undefined) return ` from ${low}`;
  if (high !== undefined) return ` up to ${high}`;
  return schema.maxLength !== undefined ? ` of up to ${schema.maxLength} characters` : "";
}

/** A table that scrolls sideways where it must. */
function table(caption, heads, rows) {
  if (!rows.length) return null;
  const label = `${caption}: table`;
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    make("table", {},
      make("caption", { class: "unseen", text: caption }),
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col", text: head })))),
      make("tbody", {}, ...rows)));
}

function row(name, schema, description, is_needed) {
  const by_default = schema?.default ?? null;
  const usual = by_default !== null && by_default !== "" ? [" Usual: ", make("code", { text: JSON.stringify(by_default) }), "."] : [];
  return make("tr", {},
    make("th", { scope: "row" }, make("code", { text: name }), ...(is_needed ? [" ", make("span", { class: "needed", text: "needed" })] : [])),
    make("td", { class: "sort" }, ...sort_of(schema)),
    make("td", {}, ...prose(description ?? schema?.description), ...usual));
}

function fields(name, schema) {
  const needed = new Set(schema.additionalProperties === false ? schema.required ?? [] : []);
  const rows = Object.entries(schema.properties ?? {}).map(([field, inner]) => row(field, inner, inner.description, needed.has(field)));
  return table(`Fields of ${name}`, ["Field", "Type", "Meaning"], rows);
}

/** What answers hold, in words. */
function held(answer) {
  return joined(Object.entries(answer.content ?? {}).map(([kind, { schema }]) =>
    (schema?.$ref ? sort_of(schema) : [make("code", { text: kind })])), ", ");
}

function answers(operation, common) {
  const rows = Object.entries(operation.responses)
    .filter(([, answer]) => !common.has(answer.$ref))
    .sort(([a], [b]) => a - b)
    .map(([status, answer]) => {
      const headers = Object.entries(answer.headers ?? {}).flatMap(([name, header]) => [" ", make("code", { text: name }), `: ${header.description}`]);
      return make("tr", {},
        make("th", { scope: "row" }, make("code", { text: status })),
        make("td", {}, ...prose(answer.description), ...headers),
        make("td", { class: "sort" }, ...held(answer)));
    });
  return table(`Answers to ${operation.summary}`, ["Status", "Meaning", "Holds"], rows);
}

/** A call as it is typed. */
function typed(method, path, operation) {
  const place = path.replace(/\{(\w+)\}/g, (whole, name) => {
    const one = (operation.parameters ?? []).find((each) => each.name === name)?.schema?.examples?.[0];
    return one === undefined ? whole : encodeURIComponent(one);
  });
  const parts = [`curl ${location.origin}${place}`];
  if (method !== "get") parts[0] = `curl -X ${method.toUpperCase()} ${location.origin}${place}`;
  const content = resolved(operation.requestBody)?.content ?? {};
  const one = resolved(content["application/json"]?.schema)?.examples?.[0];
  if (one) parts.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(one).replaceAll("'", "'\\''")}'`);
  else if (Object.keys(content).length) parts.push(`-H 'Content-Type: ${Object.keys(content)[0]}'`, "--data-binary @picture.png");
  if (Object.keys(operation.responses[200]?.content ?? {}).some((kind) => kind.startsWith("image/"))) parts.push("-o picture.png");
  return parts.join(" \\\n  ");
}

function body_of(operation) {
  const body = resolved(operation.requestBody);
  if (!body) return [];
  const kinds = Object.entries(body.content);
  const schema = resolved(kinds[0][1].schema);
  if (schema.properties) return [make("h4", { text: "Body" }), fields(operation.summary, schema)];
  const list = joined(kinds.map(([kind]) => [make("code", { text: kind })]), ", ");
  return [make("h4", { text: "Body" }), make("p", {}, ...prose(body.description), " ", ...list)];
}

function shown(method, path, operation, common) {
  const rows = (operation.parameters ?? []).map((one) => row(one.name, one.schema, `${one.description ?? ""}`, one.required));
  return make("article", { class: "operation card", id: operation.operationId, "aria-labelledby": `${operation.operationId}-title` },
    make("h3", { id: `${operation.operationId}-title`, text: operation.summary }),
    make("p", { class: "call" }, make("span", { class: "method", "data-method": method, text: method.toUpperCase() }), make("code", { text: path })),
    make("p", {}, ...prose(operation.description)),
    ...(rows.length ? [make("h4", { text: "In the address and headers" }), table(`Parameters of ${operation.summary}`, ["Name", "Type", "Meaning"], rows)] : []),
    ...body_of(operation),
    make("h4", { text: "Answers" }), answers(operation, common),
    make("h4", { text: "For example" }),
    make("pre", { tabindex: "0", role: "region", "aria-label": `Example: ${operation.summary}` }, make("code", { text: typed(method, path, operation) })));
}

function contents(title, links) {
  return [make("p", { text: title }), make("ul", {}, ...links.map(([id, text]) => make("li", {}, make("a", { href: `#${id}`, text }))))];
}

function section(id, title, about, children) {
  return make("section", { id, "aria-labelledby": `${id}-title` },
    make("h2", { id: `${id}-title`, text: title }), make("p", {}, ...prose(about)), ...children);
}

/** What the guard may answer to anybody is told once. */
function common_answers(common) {
  const used = new Map();
  for (const methods of Object.values(told.paths)) {
    for (const operation of Object.values(methods)) {
      for (const [status, answer] of Object.entries(operation.responses)) if (common.has(answer.$ref)) used.set(status, resolved(answer));
    }
  }
  const rows = [...used].sort(([a], [b]) => a - b).map(([status, answer]) => make("tr", {},
    make("th", { scope: "row" }, make("code", { text: status })),
    make("td", {}, ...prose(answer.description)),
    make("td", { class: "sort" }, ...held(answer))));
  return table("Answers that any request may get", ["Status", "Meaning", "Holds"], rows);
}

function show() {
  const common = new Set(Object.keys(told.components.responses ?? {}).map((name) => `#/components/responses/${name}`));
  const operations = Object.entries(told.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, operation })));
  $("#told-about").append(...prose(told.info.description));
  const list = $("#contents"), place = $("#api");
  for (const { name, description } of told.tags ?? []) {
    const own = operations.filter(({ operation }) => operation.tags?.includes(name));
    list.append(...contents(name, own.map(({ operation }) => [operation.operationId, operation.summary])));
    place.append(section(`tag-${name}`, name, description, own.map(({ path, method, operation }) => shown(method, path, operation, common))));
  }
  place.append(section("any", "Any request", "What may come back whatever was asked for.", [common_answers(common)]));
  const shapes = Object.entries(told.components.schemas).sort(([a], [b]) => a.localeCompare(b));
  list.append(...contents("More", [["any", "Any request"], ["shapes", "Objects"]]));
  place.append(section("shapes", "Objects", "What is sent and answered, by name.", shapes.map(([name, schema]) =>
    make("article", { class: "shape card", id: `shape-${name}`, "aria-labelledby": `shape-${name}-title` },
      make("h3", { id: `shape-${name}-title`, text: name }),
      make("p", {}, ...prose((schema.description ?? "").split("\n\n")[0])),
      fields(name, schema)))));
  // What the address points at was not there yet when the browser looked for it.
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

try {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`the server answered with ${answer.status}`);
  told = await answer.json();
  show();
} catch (error) {
  banner(`The description cannot be shown: ${error.message}.`);
}
