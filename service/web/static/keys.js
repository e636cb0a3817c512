// The panel beside the editor: which keys the schema allows where the cursor is, and what they mean.
"use strict";

const panel = document.getElementById("keys");
const panelTitle = document.getElementById("keys-title");
let schemas = null;

/** A schema with what it refers to. */
function resolved(node) {
  const target = node?.$ref && schemas[node.$ref.split("/").at(-1)];
  return target ? { ...target, ...node, $ref: undefined } : node ?? {};
}

/** The schemas of which a value may follow one. */
function variants(node) {
  const whole = resolved(node);
  const inner = [...(whole.anyOf ?? []), ...(whole.oneOf ?? []).filter((each) => each.$ref || each.type), ...(whole.allOf ?? [])];
  return inner.length && !whole.properties ? inner.flatMap(variants) : [whole];
}

/** The schema at a path below the spec; null if the schema says nothing about it. */
function schemaAt(path) {
  let found = { ...schemas.Spec, properties: { ...schemas.Spec.properties, sweep: sweepSchema() } };
  for (const key of path) {
    const next = variants(found).map((node) => node.properties?.[key] ?? (/^\d+$/.test(key) && node.items) ?? node.additionalProperties);
    found = next.find((node) => node && typeof node === "object");
    if (!found) return null;
  }
  return found;
}

function sweepSchema() {
  const { name, spec, ...plan } = schemas.SweepRequest.properties;
  return { type: "object", properties: plan, description: "Values to try: a job for each combination" };
}

/** The type of a value, in words. */
function typeOf(node) {
  const kinds = variants(node).map((each) => {
    if (each.const !== undefined) return JSON.stringify(each.const);
    if (each.enum) return each.enum.map((value) => JSON.stringify(value)).join(" or ");
    if (each.type === "array") return each.items ? `list of ${typeOf(each.items)}` : "list";
    return { object: "mapping", integer: "whole number", boolean: "true or false", string: "text", null: "null" }[each.type] ?? each.type ?? "any value";
  });
  return [...new Set(kinds)].join(" or ");
}

function shortDefault(node) {
  return node.default === undefined || (node.default && typeof node.default === "object") ? "" : `default ${JSON.stringify(node.default)}`;
}

function keyItem(name, node, insert) {
  const item = element("li"), button = element("button", name, "quiet");
  button.type = "button";
  button.addEventListener("click", insert);
  item.append(button, " ", element("span", [typeOf(node), shortDefault(node)].filter(Boolean).join(", "), "hint"));
  const text = node.description ?? resolved(node).description ?? "";
  if (text) item.append(element("p", text.split("\n\n")[0]));
  return item;
}

function showKeys() {
  if (!schemas || document.activeElement?.closest("#keys")) return;
  const offset = editor.selectionStart;
  const place = outline.placeOf(offset), node = schemaAt(place.path);
  const where = place.path.join(".");
  if (place.at === "value" && node) showValue(place, node, where);
  else if (place.at === "key" && node) showKeysOf(place, node, where, offset);
  else {
    panelTitle.textContent = where ? `Below ${where}` : "Keys";
    panel.replaceChildren(element("li", "The schema leaves open what stands here: arguments of a class are checked against its signature.", "hint"));
  }
}

function showKeysOf(place, node, where, offset) {
  const used = new Set(outline.keysOf(place.path)), typed = editor.value.slice(place.start, offset).trim();
  const own = outline.entries.find(({ start }) => start === place.start);
  const known = Object.assign({}, ...variants(node).map((each) => each.properties ?? {}));
  const all = Object.entries(known).filter(([name]) => !used.has(name) || own?.path.at(-1) === name);
  const fitting = all.filter(([name]) => name.startsWith(typed));
  panelTitle.textContent = where ? `Keys of ${where}` : "Keys of the spec";
  const shown = fitting.length ? fitting : all;
  const open = Object.keys(known).length ? "All its keys are there." : "Its keys are names of your own.";
  panel.replaceChildren(...shown.map(([name, each]) => keyItem(name, each, () => insertKey(place, name, each, own))));
  if (!shown.length) panel.replaceChildren(element("li", open, "hint"));
}

function showValue(place, node, where) {
  panelTitle.textContent = where;
  const about = element("li");
  about.append(element("span", [typeOf(node), shortDefault(node)].filter(Boolean).join(", "), "hint"));
  const text = node.description ?? resolved(node).description;
  if (text) about.append(element("p", text));
  const choices = variants(node).flatMap((each) => each.enum ?? (each.const !== undefined ? [each.const] : each.type === "boolean" ? [true, false] : each.type === "null" ? [null] : []));
  panel.replaceChildren(about, ...choices.map((value) => {
    const item = element("li"), button = element("button", String(value), "quiet");
    button.type = "button";
    button.addEventListener("click", () => insertValue(place, value));
    item.append(button);
    return item;
  }));
}

function insertKey(place, name, node, own) {
  const end = own ? own.end + 1 : endOfWord(place.start);
  const kinds = variants(resolved(node));
  const isMapping = kinds.some(({ type, properties }) => type === "object" || properties) && !kinds.some(({ type }) => ["integer", "number", "string"].includes(type));
  const plain = node.default !== undefined && node.default !== null && typeof node.default !== "object" ? JSON.stringify(node.default) : "";
  const quote = place.flow && /^\s*\{/.test(editor.value) ? '"' : "";
  let text = `${quote}${name}${quote}:`;
  if (!own) text += isMapping ? (place.flow ? " {}" : `\n${" ".repeat(place.indent + 2)}`) : ` ${plain}`;
  replaceText(place.start, end, text);
  const caret = place.start + text.length;
  if (!own && isMapping && place.flow) editor.setSelectionRange(caret - 1, caret - 1);
  else if (!own && plain && !isMapping) editor.setSelectionRange(caret - plain.length, caret);
  showKeys();
}

function insertValue(place, value) {
  const rest = editor.value.slice(place.start).match(/^[ ]*("[^"\n]*"|'[^'\n]*'|[^\s,}\]#]*)/)[0];
  replaceText(place.start, place.start + rest.length, ` ${value}`);
  showKeys();
}

function endOfWord(start) {
  return start + editor.value.slice(start).match(/^[\w.]*/)[0].length;
}

panel.addEventListener("keydown", (event) => {
  const buttons = [...panel.querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
  if (event.key === "Escape") editor.focus();
  else if (event.key === "ArrowDown" && at >= 0) buttons[Math.min(at + 1, buttons.length - 1)].focus();
  else if (event.key === "ArrowUp" && at >= 0) buttons[Math.max(at - 1, 0)].focus();
  else return;
  event.preventDefault();
});

document.addEventListener("selectionchange", () => { if (document.activeElement === editor) showKeys(); });
editor.addEventListener("input", showKeys);
document.addEventListener("DOMContentLoaded", async () => {
  try {
    schemas = (await ask("GET", "openapi.json")).components.schemas;
    showKeys();
  } catch (error) {
    panel.replaceChildren(element("li", `The keys are not known: ${error.message}`, "hint"));
  }
});
