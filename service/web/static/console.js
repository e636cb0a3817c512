// What all pages of the console share: actions, notices, ages, and the word that the service is away.
"use strict";

const root = new URL(document.body.dataset.root, location.href);
const forgeryToken = document.querySelector("meta[name=forgery-token]")?.content ?? "";

/** The URL of a path of this service, under whatever prefix a proxy serves it. */
function address(path) {
  return new URL(path.replace(/^\//, ""), root);
}

/** Sends a request; returns its document, or throws an Error with the text of the problem document. */
async function ask(method, path, body, headers = {}) {
  const options = { method, headers: { "X-CSRF-Token": forgeryToken, ...headers } };
  if (body !== undefined) {
    options.body = typeof body === "string" || body instanceof Blob ? body : JSON.stringify(body);
    options.headers["Content-Type"] ??= "application/json";
  }
  let response;
  try {
    response = await fetch(address(path), options);
  } catch {
    throw new Error("The service does not answer. Nothing has changed as far as this page knows; try again.");
  }
  if (response.status === 401) {
    location.assign(address(`sign-in?next=${encodeURIComponent(location.href.slice(root.href.length))}`));
  }
  const kind = response.headers.get("Content-Type") ?? "";
  // An answer without content may still be announced as JSON.
  const found = kind.includes("json") && response.status !== 204 ? await response.json() : await response.text();
  if (!response.ok) throw failure(kind.includes("json") ? found : {}, response.status);
  return found;
}

/** An Error from a problem document, which is its `problem`; from {} if the answer had none. */
function failure(problem, status) {
  const error = new Error(problem.detail ?? `The service answered with ${status}.`);
  error.problem = { ...problem, status };
  return error;
}

/** What failed, with the page's way out of it. */
function tryingAgain(error) {
  return `${error.message.replace(/[.]?$/, ".")} This page tries again.`;
}

/** Shows a text at the edge of the page for a while. */
function notify(text, failed = false) {
  const notice = document.createElement("div");
  notice.className = failed ? "notice failed" : "notice";
  notice.textContent = text;
  document.getElementById("notices").append(notice);
  setTimeout(() => notice.remove(), failed ? 15000 : 4000);
}

/** Asks before an action that cannot be undone; resolves to whether to go on. */
function confirmed(text, action) {
  return new Promise((resolve) => {
    const dialog = document.createElement("dialog");
    const question = document.createElement("p");
    question.textContent = text;
    const buttons = document.createElement("form");
    buttons.method = "dialog";
    buttons.className = "row";
    for (const [value, label, kind] of [["yes", action, "danger"], ["no", "Back", "quiet"]]) {
      const button = document.createElement("button");
      [button.value, button.textContent, button.className] = [value, label, kind];
      buttons.append(button);
    }
    dialog.append(question, buttons);
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// Actions: <button data-action="cancel" data-post="v1/jobs/ID/cancel" data-confirm="…" data-done="…">
async function act(button) {
  const { post, method, body, confirm, done, next } = button.dataset;
  if (confirm && !(await confirmed(confirm, button.textContent.trim()))) return;
  button.disabled = true;
  try {
    await ask(method ?? "POST", post, body ? JSON.parse(body) : undefined);
    if (next !== undefined) location.assign(address(next));
    else if (done) notify(done);
    document.dispatchEvent(new CustomEvent("acted", { detail: button.dataset.action }));
  } catch (error) {
    notify(error.message, true);
  } finally {
    button.disabled = false;
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-action]");
  if (!button) return;
  if (button.dataset.action === "sign-out") {
    await ask("POST", "sign-out").catch((error) => notify(error.message, true));
    location.assign(address("sign-in"));
  } else if (button.dataset.post) {
    await act(button);
  }
});

// Ages and moments, in the reader's time zone: <time datetime="…" data-ago> or data-moment
function age(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(Math.floor(seconds), 0)} s`;
}

function showTimes() {
  for (const element of document.querySelectorAll("text[data-hour]")) {
    const text = new Date(element.dataset.hour).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    if (element.textContent !== text) element.textContent = text;
  }
  for (const element of document.querySelectorAll("time[data-ago]")) {
    const moment = new Date(element.dateTime);
    const text = age((Date.now() - moment) / 1000);
    if (element.textContent !== text) element.textContent = text;
    if (!element.dataset.local) {
      element.dataset.local = "yes";
      element.title = moment.toLocaleString();
    }
  }
  for (const element of document.querySelectorAll("time[data-moment]")) {
    const text = new Date(element.dateTime).toLocaleString();
    if (element.textContent !== text) {
      element.title = element.textContent;
      element.textContent = text;
    }
  }
}
setInterval(showTimes, 1000);

// Whether the page is live: streams of hx-sse, and those that a page opens itself, report here.
let awaySince = 0;
function away(why) {
  awaySince ||= Date.now();
  const banner = document.getElementById("away");
  banner.textContent = why;
  banner.hidden = false;
}
function back() {
  if (!awaySince) return;
  const banner = document.getElementById("away");
  banner.textContent = `The service was away for ${age((Date.now() - awaySince) / 1000)}. The page is up to date again.`;
  awaySince = 0;
  setTimeout(() => { if (!awaySince) banner.hidden = true; }, 5000);
}
const LOST = "The service does not answer. This page shows what it last said, and tries again.";
const DELETED = "This has been deleted. The page shows what was last known of it.";
let deleted = false;
document.addEventListener("htmx:sse:error", (event) => {
  if (event.detail.status === 401) location.reload();
  deleted = event.detail.status === 404;
  away(deleted ? DELETED : LOST);
});
document.addEventListener("htmx:sse:before:connection", (event) => {
  if (event.detail.connection.attempt > 0 && !deleted) away(LOST);
});
document.addEventListener("htmx:sse:after:connection", back);
document.addEventListener("htmx:sse:before:message", (event) => {
  const { event: name, data } = event.detail.message;
  if (name === "away") away(`${data.replace(/[.]?$/, ".")} This page shows what was last known.`);
  else back();
});
document.addEventListener("htmx:after:swap", showTimes);
document.addEventListener("DOMContentLoaded", showTimes);

/**
 * Opens a stream of events while the page is looked at; returns what ends it for good.
 *
 * A browser has six connections to a server for all its tabs: those in the background would leave it none.
 */
function streamWhileSeen(path, listeners) {
  let [stream, over] = [null, false];
  function open() {
    stream?.close();
    if (over || document.hidden) return;
    stream = new EventSource(address(path));
    for (const [name, listener] of Object.entries(listeners)) stream.addEventListener(name, listener);
  }
  document.addEventListener("visibilitychange", open);
  open();
  return () => {
    over = true;
    stream?.close();
  };
}
