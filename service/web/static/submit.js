// The page that submits: the editor, its problems, what would run, the code that is uploaded.
"use strict";

const form = document.getElementById("submit");
const editor = document.getElementById("spec");
const gutter = document.getElementById("gutter");
const verdict = document.getElementById("verdict");
const problemList = document.getElementById("problems");
const draftName = `draft:${location.pathname}${location.search}`;
const given = editor.value;
let outline = new Outline(editor.value);
let original = null;  // the whole spec of the job that is cloned
let problems = [];

/** An element with text in it. */
function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function plural(amount, noun) {
  return `${amount} ${noun}${amount === 1 ? "" : "s"}`;
}

// The editor

/** Puts a text in place of another, so that undoing works. */
function replaceText(start, end, text) {
  editor.focus();
  editor.setSelectionRange(start, end);
  if (!document.execCommand("insertText", false, text)) {
    editor.setRangeText(text, start, end, "end");
    editor.dispatchEvent(new Event("input"));
  }
}

function showNumbers() {
  const bad = new Map(problems.filter(({ line }) => line !== null).map(({ line, message }) => [line, message]));
  gutter.replaceChildren(...outline.lineStarts.map((_, line) => element("span", `${line + 1}\n`, bad.has(line) ? "bad" : "")));
  editor.rows = Math.min(Math.max(outline.lineStarts.length + 1, 18), 40);
  gutter.scrollTop = editor.scrollTop;
}

function jumpTo(line, start = outline.lineStarts[line], end = start) {
  editor.focus();
  editor.setSelectionRange(start, end);
  const height = parseFloat(getComputedStyle(editor).lineHeight);
  editor.scrollTop = Math.max((line - 5) * height, 0);
}

let leaving = false;  // Escape was pressed: the next Tab leaves the editor
editor.addEventListener("keydown", (event) => {
  if (event.key === "Escape") leaving = true;
  else if (event.key === "Tab" && !leaving && !event.ctrlKey && !event.altKey) indent(event);
  else if (event.key === " " && event.ctrlKey) {
    event.preventDefault();
    document.querySelector("#keys button")?.focus();
  } else if (event.key !== "Shift") leaving = false;
});
editor.addEventListener("blur", () => { leaving = false; });

function indent(event) {
  event.preventDefault();
  const { value, selectionStart: start, selectionEnd: end } = editor;
  const begin = value.lastIndexOf("\n", start - 1) + 1;
  if (start === end && !event.shiftKey) {
    replaceText(start, end, "  ");
    return;
  }
  const stop = value.indexOf("\n", Math.max(end - 1, begin)) < 0 ? value.length : value.indexOf("\n", Math.max(end - 1, begin));
  const lines = value.slice(begin, stop).split("\n");
  const text = lines.map((line) => (event.shiftKey ? line.replace(/^ {1,2}/, "") : `  ${line}`)).join("\n");
  replaceText(begin, stop, text);
  editor.setSelectionRange(start === end ? Math.max(start - 2, begin) : begin, start === end ? Math.max(start - 2, begin) : begin + text.length);
}

editor.addEventListener("scroll", () => { gutter.scrollTop = editor.scrollTop; });
editor.addEventListener("input", changed);

function changed() {
  outline = new Outline(editor.value);
  if (editor.value === given) sessionStorage.removeItem(draftName);
  else sessionStorage.setItem(draftName, editor.value);
  document.getElementById("restart").hidden = editor.value === given;
  showNumbers();
  expectVerdict();
}

/** Replaces everything, after a question if something would be lost. */
async function load(text, from) {
  const loses = editor.value.trim() && editor.value !== given && editor.value !== load.last;
  if (loses && !(await confirmed(`Replace what you have written by ${from}?`, "Replace"))) return false;
  load.last = text;
  replaceText(0, editor.value.length, text);
  jumpTo(0);
  return true;
}

document.getElementById("restart").addEventListener("click", () => load(given, "what this page began with"));
const templates = document.getElementById("template");
let chosen = templates.value;
templates.addEventListener("change", async ({ target }) => {
  try {
    const text = await ask("GET", `data/templates/${target.value.split("/").map(encodeURIComponent).join("/")}`);
    if (await load(text, `the template ${target.value}`)) chosen = target.value;
    target.value = chosen;
  } catch (error) {
    target.value = chosen;
    notify(error.message, true);
  }
});
document.getElementById("file").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  if (!file) return;
  if (file.size > 2 ** 20) notify(`${file.name} has more than 1 MiB: a spec is a short text. Code is uploaded below.`, true);
  else await load(await file.text(), file.name);
  target.value = "";
});

// Checking

/** What to send where: a spec, or, with a section `sweep`, a sweep. lineOf: of the text, for one of the body. */
function request(text) {
  const at = outline.entries.find(({ path }) => path.length === 1 && path[0] === "sweep");
  if (!at) return { kind: "jobs", body: text, lineOf: (line) => line, keyOf: (key) => key };
  const keyOf = (key) => (key.startsWith("spec.") ? key.slice(5) : `sweep.${key}`);
  if (/^\s*\{/.test(text)) {
    let document = {};
    try { document = JSON.parse(text); } catch { /* the service says what is wrong with it */ return { kind: "jobs", body: text, lineOf: (line) => line, keyOf: (key) => key }; }
    const { sweep, ...spec } = document;
    return { kind: "sweeps", body: JSON.stringify({ ...sweep, spec }), lineOf: () => 0, keyOf };
  }
  const lines = text.split("\n");
  const next = outline.entries.find(({ path, line }) => path.length === 1 && line > at.line);
  const end = next ? next.line : lines.length;
  const spec = lines.map((line, i) => (i >= at.line && i < end ? "" : `  ${line}`));
  // A merge key takes the section in whatever style it is written.
  const section = [lines[at.line].replace(/^.*?:/, "<<:"), ...lines.slice(at.line + 1, end)];
  const lineOf = (line) => (line > lines.length ? line - lines.length - 1 + at.line : line - 1);
  return { kind: "sweeps", body: ["spec:", ...spec, ...section].join("\n"), lineOf, keyOf };
}

let timer = 0, newest = 0;
function expectVerdict() {
  clearTimeout(timer);
  timer = setTimeout(check, 400);
}

async function check() {
  const number = ++newest;
  const sent = request(editor.value);
  verdict.textContent = "Checking…";
  try {
    const found = await ask("POST", `v1/${sent.kind}/validate`, sent.body, { "Content-Type": "application/yaml" });
    if (number !== newest) return;
    problems = [];
    verdict.className = "good";
    verdict.textContent = sent.kind === "jobs" ? "The spec is valid." : "The sweep is valid.";
    showPlan(sent.kind, found);
  } catch (error) {
    if (number !== newest) return;
    problems = located(error, sent);
    verdict.className = "bad";
    verdict.textContent = error.problem?.errors?.length ? `${plural(problems.length, "problem")}:` : error.message;
    document.getElementById("plan").replaceChildren(element("p", "Shown when the spec is valid.", "hint"));
    if (original) showSame("Shown when the spec is valid.");
  }
  showProblems();
  showNumbers();
}

/** The problems of an answer with the lines they are on; null where none can be told. */
function located(error, sent) {
  return (error.problem?.errors ?? []).map(({ key, message }) => {
    const own = sent.keyOf(key), entry = key ? outline.find(own) : null;
    const syntax = message.match(/\bline (\d+)/);
    const line = entry ? entry.line : !key && syntax ? sent.lineOf(Number(syntax[1]) - 1) : null;
    return { key: key ? own : "", message, line, entry };
  });
}

function showProblems() {
  problemList.replaceChildren(...problems.map(({ key, message, line, entry }) => {
    const item = element("li");
    if (line !== null) {
      const button = element("button", `Line ${line + 1}`, "quiet");
      button.type = "button";
      button.addEventListener("click", () => jumpTo(line, entry?.start, entry?.end));
      item.append(button, " ");
    }
    if (key) item.append(element("code", key), ": ");
    item.append(message);
    return item;
  }));
}

// What would run

function showPlan(kind, found) {
  const plan = document.getElementById("plan");
  const parts = kind === "jobs" ? planOfJob(found) : planOfSweep(found);
  for (const note of found.notes) parts.push(element("p", note, "note"));
  plan.replaceChildren(...parts);
  if (kind === "jobs" && original) showDifferences(found.spec);
}

/** Says when a job would start, in the words of a job's page (service/web/shown.py). */
function expected({ at, because, at_latest: latest }) {
  if (at === null) return because;
  const seconds = (new Date(at) - Date.now()) / 1000, minutes = Math.round(seconds / 60);
  const [days, hours] = [Math.floor(minutes / 1440), Math.floor((minutes % 1440) / 60)];
  const parts = seconds < 57.5 ? [[Math.max(Math.round(seconds / 5), 1) * 5, "s"]]
    : days ? [[days, "d"], [hours, "h"]] : [[hours, "h"], [minutes % 60, "min"]];
  const about = parts.filter(([amount]) => amount).map((part) => part.join(" ")).join(" ");
  return `${latest ? "at the latest " : ""}in about ${about}, ${because}`;
}

function planOfJob({ spec, resources, shares, fits_now: now, fits_ever: ever, reason, expected_start: start }) {
  const pairs = [["Name", spec.name], ["Workers", `${resources.workers}, in all ${resources.cpus} CPUs` + (resources.gpus ? `, ${plural(resources.gpus, "GPU")}` : "")]];
  if (shares) pairs.push(["Samples of a batch", shares.every((share) => share === shares[0]) ? `${shares[0]} on each worker` : `${shares.join(", ")} on the workers`]);
  if (start) pairs.push(["Starts", expected(start)], ["Waits", reason]);
  else {
    const when = now ? "at once" : ever === false ? "never on these machines" : now === null ? "not known" : "when there is room";
    pairs.push(["Starts", reason ? `${when}: ${reason}` : when]);
  }
  if (spec.tracking) pairs.push(["Experiment", spec.tracking.experiment]);
  const list = element("dl", "", "pairs");
  for (const [name, value] of pairs) list.append(element("dt", name), element("dd", value));
  return [list];
}

function planOfSweep({ points }) {
  const list = element("ol");
  for (const { name, values } of points.slice(0, 30)) {
    const each = Object.entries(values).map(([key, value]) => `${key} = ${JSON.stringify(value)}`);
    list.append(element("li", `${name}: ${each.join(", ") || "as it stands"}`));
  }
  const parts = [element("p", `A sweep of ${plural(points.length, "job")}:`), list];
  if (points.length > 30) parts.push(element("p", `and ${points.length - 30} more`));
  return parts;
}

/** The values of a document by their dotted keys. */
function flat(value, path = "") {
  if (value === null || typeof value !== "object" || !Object.keys(value).length) return new Map([[path, JSON.stringify(value)]]);
  return new Map(Object.entries(value).flatMap(([key, each]) => [...flat(each, path ? `${path}.${key}` : key)]));
}

function showDifferences(spec) {
  const [before, after] = [flat({ ...original, source: null }), flat({ ...spec, source: null })];
  const keys = [...new Set([...before.keys(), ...after.keys()])].filter((key) => before.get(key) !== after.get(key));
  const list = document.getElementById("differences");
  list.replaceChildren(...keys.map((key) => {
    const item = element("li");
    item.append(element("code", key), ": ", element("del", before.get(key) ?? "not set"), " → ", element("ins", after.get(key) ?? "not set"));
    return item;
  }));
  showSame(keys.length ? "" : "Nothing yet.");
}

/** Says in place of the differences why there are none to be seen. */
function showSame(text) {
  const place = document.getElementById("same");
  [place.textContent, place.hidden] = [text, !text];
  if (text) document.getElementById("differences").replaceChildren();
}

// Code

const uploaded = document.getElementById("uploaded");
async function upload(name, what, archive) {
  const limit = Number(form.dataset.limit);
  if (archive.size > limit) throw new Error(`${name} is ${size(archive.size)}, packed; ${size(limit)} are allowed. Keep data and results outside the folder.`);
  uploaded.textContent = `Uploading ${what}, ${size(archive.size)}…`;
  const { digest } = await ask("POST", "v1/code", archive, { "Content-Type": "application/zip" });
  uploaded.textContent = `Uploaded ${what}, ${size(archive.size)} packed. The spec now names it: digest ${digest.slice(0, 12)}….`;
  setCode(digest);
}

function size(bytes) {
  return bytes < 1024 ? `${bytes} bytes` : bytes < 2 ** 20 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

function setCode(digest) {
  const entry = outline.entries.find(({ path }) => path.length === 1 && path[0] === "code");
  const text = editor.value;
  if (entry) {
    const rest = text.slice(entry.end + 1).match(/^\s*("[^"]*"|'[^']*'|[\w]+)?/)[0];
    replaceText(entry.end + 1, entry.end + 1 + rest.length, ` "${digest}"`);
  } else if (/^\s*\{/.test(text)) {
    replaceText(text.indexOf("{") + 1, text.indexOf("{") + 1, `"code": "${digest}", `);
  } else {
    replaceText(text.length, text.length, `${!text || text.endsWith("\n") ? "" : "\n"}code: "${digest}"\n`);
  }
}

/** Runs an upload; says beside the button why it failed. */
async function uploading(input, run) {
  uploaded.className = "";
  try {
    await run();
  } catch (error) {
    const details = (error.problem?.errors ?? []).map(({ key, message }) => `${key.replace(/^code:/, "")} ${message}`);
    uploaded.className = "problem";
    uploaded.textContent = [error.message, ...details.filter((text) => !error.message.includes(text))].join("\n");
  } finally {
    input.value = "";
  }
}

document.getElementById("folder")?.addEventListener("change", ({ target }) => uploading(target, async () => {
  const files = codeFiles(target.files);
  if (!files.length) throw new Error("There is no file to upload in this folder: hidden and generated files are left out.");
  const total = files.reduce((sum, [, file]) => sum + file.size, 0);
  if (total > Number(form.dataset.limit)) throw new Error(`The folder has ${size(total)}, more than the ${size(Number(form.dataset.limit))} allowed for code. Keep data and results outside it.`);
  uploaded.textContent = `Packing ${plural(files.length, "file")}…`;
  await upload("The folder", plural(files.length, "file"), await zipped(files));
}));
document.getElementById("archive")?.addEventListener("change", ({ target }) => uploading(target, async () => {
  const [file] = target.files;
  if (file) await upload(file.name, file.name, file);
}));

// Submitting

let attempt = { text: null, key: "" };
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = document.getElementById("go"), refusal = document.getElementById("refusal");
  // The same text is submitted once, however often it is sent because an answer was lost.
  if (attempt.text !== editor.value) {
    attempt = { text: editor.value, key: [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("") };
  }
  const sent = request(editor.value);
  [button.disabled, button.textContent, refusal.hidden] = [true, "Submitting…", true];
  try {
    const made = await ask("POST", `v1/${sent.kind}`, sent.body, { "Content-Type": "application/yaml", "Idempotency-Key": attempt.key });
    sessionStorage.removeItem(draftName);
    location.assign(address(`${sent.kind}/${made.id}`));
  } catch (error) {
    [refusal.textContent, refusal.hidden] = [error.message, false];
    if (error.problem?.errors) {
      newest++;
      problems = located(error, sent);
      showProblems();
      showNumbers();
    }
    [button.disabled, button.textContent] = [false, "Submit"];
  }
});

document.addEventListener("DOMContentLoaded", async () => {
  const draft = sessionStorage.getItem(draftName);
  if (draft !== null && draft !== given) {
    editor.value = draft;
    document.getElementById("drafted").hidden = false;
  }
  changed();
  if (form.dataset.clone) {
    try {
      original = (await ask("GET", `v1/jobs/${form.dataset.clone}`)).spec;
      expectVerdict();
    } catch (error) {
      notify(error.message, true);
    }
  }
});
window.addEventListener("pageshow", () => {  // also when the reader comes back to it
  const button = document.getElementById("go");
  if (button && button.textContent !== "Submit") [button.disabled, button.textContent] = [false, "Submit"];
});
