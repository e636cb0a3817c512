// The page of the REST API: the service's address in the examples, finding routes, and "Try it".
"use strict";

const LONGEST = 200_000;  // characters of an answer that are shown

for (const each of document.querySelectorAll("[data-base]")) each.textContent = root.href.replace(/\/$/, "");

// Finding

document.getElementById("filter").addEventListener("input", ({ target }) => {
  const words = target.value.toLowerCase().split(/\s+/).filter(Boolean);
  const items = [...document.querySelectorAll(".routes li")];
  for (const item of items) item.hidden = !words.every((word) => item.dataset.text.includes(word));
  const left = items.filter((item) => !item.hidden).length;
  document.getElementById("found").textContent = words.length ? `${left} of ${items.length} routes` : "";
});

/** Opens what a link of the page leads to. */
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const details = target?.matches("details") ? target : target?.closest("article")?.querySelector("details");
  if (!details) return;
  details.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", openTarget);
document.addEventListener("DOMContentLoaded", openTarget);

// Trying

/** What a form asks for: the URL and the options of fetch. */
function requestOf(form) {
  let path = form.dataset.path.slice(1);
  const query = new URLSearchParams(), headers = {};
  for (const input of form.querySelectorAll("[data-place]")) {
    const { place, name } = input.dataset, { value } = input;
    // A path parameter may hold slashes: the route says so by taking them.
    if (place === "path") path = path.replace(`{${name}}`, value.split("/").map(encodeURIComponent).join("/"));
    else if (value && place === "query") query.append(name, value);
    else if (value) headers[name] = value;
  }
  const options = { method: form.dataset.method, headers };
  if (options.method !== "GET") headers["X-CSRF-Token"] = forgeryToken;
  const kind = form.querySelector("[data-kind]"), text = form.querySelector("[data-body]");
  if (kind) {
    options.body = text ? text.value : form.querySelector("[data-file]").files[0] ?? new Blob();
    if (!text || text.value.trim()) headers["Content-Type"] = kind.value;
    if (text && !text.value.trim()) delete options.body;
  }
  return [address(path + (String(query) ? `?${query}` : "")), options];
}

/** Shows a body while it arrives: a stream of events has no end. Returns how many bytes came. */
async function showBody(response, place) {
  const isText = /json|text|yaml|xml|event-stream/.test(response.headers.get("Content-Type") ?? "");
  const isStream = response.headers.get("Content-Type")?.includes("event-stream");
  const reader = response.body?.getReader(), decoder = new TextDecoder();
  let [text, bytes] = ["", 0];
  while (reader) {
    const { done, value } = await reader.read();
    if (done) break;
    bytes += value.length;
    if (isText && text.length < LONGEST) text += decoder.decode(value, { stream: true });
    if (isStream) [place.textContent, place.hidden] = [text.slice(-LONGEST), false];
  }
  if (response.headers.get("Content-Type")?.includes("json") && text.length < LONGEST) {
    try { text = JSON.stringify(JSON.parse(text), null, 2); } catch { /* it is shown as it came */ }
  }
  if (text.length >= LONGEST) text += "\n… cut here";
  place.textContent = isText || !bytes ? text : `${bytes} bytes that are not text`;
  place.hidden = !place.textContent;
  return bytes;
}

async function tryIt(form) {
  const [outcome, headers, answer] = [".outcome", ".headers", ".answer"].map((name) => form.querySelector(name));
  const [send, stop] = ["[type=submit]", "[data-stop]"].map((name) => form.querySelector(name));
  const { method, path } = form.dataset;
  if ("changes" in form.dataset && !(await confirmed(`Send ${method} ${path} to this service? It may change something for good.`, "Send"))) return;
  const [url, options] = requestOf(form), ended = new AbortController(), begun = performance.now();
  const seconds = () => `${((performance.now() - begun) / 1000).toFixed(2)} s`;
  [outcome.className, outcome.textContent] = ["outcome", "Waiting for the answer…"];
  [headers.hidden, answer.hidden, send.disabled, stop.hidden] = [true, true, true, false];
  stop.onclick = () => ended.abort();
  try {
    const response = await fetch(url, { ...options, signal: ended.signal });
    const status = `${response.status} ${response.statusText}`;
    [outcome.className, outcome.textContent] = [`outcome ${response.ok ? "good" : "bad"}`, `${status}, ${seconds()}, the body arrives…`];
    [headers.textContent, headers.hidden] = [[...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n"), false];
    const bytes = await showBody(response, answer);
    outcome.textContent = `${status}, ${seconds()}, ${bytes} bytes`;
  } catch (error) {
    const text = ended.signal.aborted ? `Stopped after ${seconds()}` : `No answer: ${error.message}. Is the service there?`;
    outcome.textContent = ended.signal.aborted && outcome.textContent.includes(",") ? `${outcome.textContent.split(",")[0]}. ${text}` : text;
  } finally {
    [send.disabled, stop.hidden] = [false, true];
  }
}

document.addEventListener("submit", (event) => {
  if (!event.target.matches(".try")) return;
  event.preventDefault();
  tryIt(event.target);
});
