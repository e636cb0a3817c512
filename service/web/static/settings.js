// The page of settings: health, and forms whose answers are shown once.
"use strict";

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** Shows the page as it now is, and says what was done. */
function again(text) {
  sessionStorage.setItem("done", text);
  location.reload();
}

// Health

const findings = document.getElementById("findings"), examineButton = document.getElementById("examine");

async function examine() {
  examineButton.disabled = true;
  findings.ariaBusy = "true";
  if (examine.again) findings.replaceChildren(element("p", "Examining: up to 15 seconds…", "hint"));
  try {
    const found = await ask("GET", "data/doctor");
    const list = element("ul", "", "findings");
    list.append(...found.findings.map(({ level, about, message, advice }) => {
      const item = element("li", "", level), line = element("p");
      line.append(element("span", level, "level"), ` ${about}: ${message}`);
      item.append(line);
      if (advice) item.append(element("p", `→ ${advice}`, "hint"));
      return item;
    }));
    const summary = found.faults + found.warnings ? `${found.faults} fault${found.faults === 1 ? "" : "s"}, ${found.warnings} warning${found.warnings === 1 ? "" : "s"}` : "All is well.";
    findings.replaceChildren(element("p", summary), list);
  } catch (error) {
    findings.replaceChildren(element("p", error.message, "problem"));
  }
  [findings.ariaBusy, examineButton.disabled, examine.again] = ["false", false, true];
}
examineButton.addEventListener("click", examine);

// Forms

/** Runs `send` when the form is submitted; says below the form why it failed. */
function onSubmit(id, send) {
  const form = document.getElementById(id);
  form?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button[type=submit]");
    form.querySelector(".problem")?.remove();
    button.disabled = true;
    try {
      await send(form);
    } catch (error) {
      const refusal = element("p", error.message, "problem");
      refusal.role = "alert";
      form.append(refusal);
    } finally {
      button.disabled = false;
    }
  });
}

function valueOf(id) {
  return document.getElementById(id).value.trim();
}

/** Shows a text that no other page will show. */
function showOnce(id, title, text, done) {
  const card = document.getElementById(id);
  const copy = element("button", "Copy"), close = element("button", "I have it", "quiet"), row = element("div", "", "row");
  copy.type = close.type = "button";
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {  // a page without https may not
      getSelection().selectAllChildren(card.querySelector("code"));
      copy.textContent = "Selected: press Ctrl+C";
    }
  });
  close.addEventListener("click", () => again(done));
  row.append(copy, close);
  card.replaceChildren(element("strong", title), element("code", text), row);
  card.hidden = false;
  card.scrollIntoView({ block: "nearest" });
}

onSubmit("make-key", async (form) => {
  const day = valueOf("key-ends"), user = valueOf("key-user");
  const ends = day ? new Date(`${day}T23:59:59`).toISOString() : null;
  const made = await ask("POST", "v1/keys", { user, scope: valueOf("key-scope"), expires_at: ends });
  form.reset();
  showOnce("new-key", `The key of ${made.user}. It is shown only now: copy it.`, made.key, `The key ${made.id} is made.`);
});
onSubmit("set-secret", async () => {
  const name = valueOf("secret-name");
  await ask("PUT", `v1/secrets/${encodeURIComponent(name)}`, document.getElementById("secret-value").value, { "Content-Type": "text/plain" });
  again(`The secret ${name} is set.`);
});
onSubmit("add-webhook", async (form) => {
  const pairs = valueOf("webhook-labels").split(",").map((text) => text.trim()).filter(Boolean);
  const wrong = pairs.find((text) => !text.includes(":"));
  if (wrong) throw new Error(`${wrong} is no label: write KEY:VALUE.`);
  const labels = Object.fromEntries(pairs.map((text) => [text.slice(0, text.indexOf(":")).trim(), text.slice(text.indexOf(":") + 1).trim()]));
  const events = [...form.querySelectorAll("[name=state]:checked")].map(({ value }) => value);
  const made = await ask("POST", "v1/webhooks", { url: valueOf("webhook-url"), events, labels });
  form.reset();
  showOnce("new-webhook", "The secret that signs its messages. It is shown only now: copy it.", made.secret, "The webhook is added.");
});

const DONE = { "revoke-key": "The key is revoked.", "delete-secret": "The secret is deleted.", "remove-webhook": "The webhook is removed." };
document.addEventListener("acted", ({ detail }) => { if (DONE[detail]) again(DONE[detail]); });

// Retention

const cleanUpButton = document.getElementById("clean-up"), cleanupText = document.getElementById("cleanup");

function size(bytes) {
  const power = bytes < 1 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), 4);
  return `${(bytes / 1024 ** power).toFixed(power ? 1 : 0)} ${["bytes", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

/** Goes through all pages of what retention gives up; says how far it is. */
async function cleanup(method, doing) {
  let [items, bytes, cursor] = [0, 0, null];
  const failed = [];
  do {
    const page = await ask(method, `v1/cleanup${cursor ? `?cursor=${encodeURIComponent(cursor)}` : ""}`);
    [items, bytes, cursor] = [items + page.items.length, bytes + page.bytes, page.next_cursor];
    failed.push(...page.problems);
    cleanupText.textContent = `${doing}: ${items} so far, ${size(bytes)}…`;
  } while (cursor);
  return { items, bytes, problems: failed.length ? ` Not possible: ${failed.slice(0, 3).join("; ")}` : "" };
}

async function run(button, method, doing, said) {
  button.disabled = true;
  cleanupText.textContent = `${doing}…`;
  try {
    const found = await cleanup(method, doing);
    cleanupText.textContent = said(found) + found.problems;
    cleanUpButton.hidden = method === "POST" || !found.items;
  } catch (error) {
    cleanupText.textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

function amount({ items, bytes }) {
  return `${items} thing${items === 1 ? "" : "s"}, ${size(bytes)}`;
}

document.getElementById("plan-cleanup")?.addEventListener("click", ({ target }) =>
  run(target, "GET", "Looking", (found) => (found.items ? `Would go: ${amount(found)}.` : "Nothing: no job has ended long enough ago.")));
cleanUpButton?.addEventListener("click", async ({ target }) => {
  if (await confirmed("Remove for good what retention gives up now?", "Remove")) await run(target, "POST", "Removing", (found) => `Removed: ${amount(found)}.`);
});

// Deliveries of webhooks

async function showDeliveries(id) {
  const place = document.getElementById("deliveries");
  try {
    const { items } = await ask("GET", `v1/webhooks/${id}/deliveries?limit=20`);
    const title = element("h3", `Newest deliveries of ${document.querySelector(`#webhook-${id} th`).textContent}`);
    if (!items.length) {
      place.replaceChildren(title, element("p", "Nothing was sent yet: press Test to send a message.", "empty"));
      return;
    }
    const table = element("table"), head = table.createTHead().insertRow();
    for (const name of ["When", "State", "Attempts", "Answer", "Problem", "Message"]) {
      head.append(Object.assign(element("th", name), { scope: "col" }));
    }
    const body = table.createTBody();
    for (const each of items) {
      const row = body.insertRow();
      const cells = [new Date(each.created_at).toLocaleString(), each.state.replace("_", " "), each.attempts, each.status ?? "", each.problem, JSON.parse(each.body).type ?? ""];
      for (const text of cells) row.append(element("td", String(text)));
    }
    const scroll = Object.assign(element("div", "", "scroll"), { tabIndex: 0, role: "group", ariaLabel: "Deliveries" });
    scroll.append(table);
    place.replaceChildren(title, scroll);
  } catch (error) {
    place.replaceChildren(element("p", error.message, "problem"));
  }
}
document.addEventListener("click", ({ target }) => { if (target.dataset?.deliveries) showDeliveries(target.dataset.deliveries); });

document.addEventListener("DOMContentLoaded", () => {
  const done = sessionStorage.getItem("done");
  sessionStorage.removeItem("done");
  if (done) notify(done);
  examine();
});
