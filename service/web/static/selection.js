// Tables whose jobs can be selected: a bar appears with what can be done with all of them.
"use strict";

const AT_ONCE = 4;
const MOST_COMPARED = 20;
const DOING = {
  cancel: { verb: "Cancelling", done: "cancelled", method: "POST", path: (id) => `v1/jobs/${id}/cancel` },
  pause: { verb: "Pausing", done: "paused", method: "POST", path: (id) => `v1/jobs/${id}/pause` },
  resume: { verb: "Resuming", done: "resumed", method: "POST", path: (id) => `v1/jobs/${id}/resume` },
  delete: { verb: "Deleting", done: "deleted", method: "DELETE", path: (id) => `v1/jobs/${id}` },
};
const ASKED_BEFORE = {
  cancel: (jobs) => `Cancel ${jobs}? What has not ended stops.`,
  delete: (jobs) => `Delete ${jobs} with logs and checkpoints? This cannot be undone.`,
};

const selectable = document.querySelector("[data-selectable]");
const selectionBar = document.getElementById("selection");
/** The selected jobs, names by id. It outlives the rows, which are replaced while the page is live. */
const selected = new Map();
let lastClicked = null;
let busy = false;

function boxes() {
  return [...selectable.querySelectorAll("input[name=job]")].filter((box) => box.closest("tr").hidden === false);
}

function counted(number) {
  return number === 1 ? "1 job" : `${number} jobs`;
}

function select(box, checked) {
  box.checked = checked;
  if (checked) selected.set(box.value, box.dataset.name);
  else selected.delete(box.value);
}

/** Shows what is selected: in the boxes, in the box of all, and in the bar. */
function showSelection() {
  const shown = boxes();
  for (const box of shown) {
    box.checked = selected.has(box.value);
    box.closest("tr").classList.toggle("selected", box.checked);
  }
  const all = selectable.querySelector("[data-select-all]");
  const checked = shown.filter((box) => box.checked).length;
  all.checked = checked > 0 && checked === shown.length;
  all.indeterminate = checked > 0 && checked < shown.length;
  selectionBar.hidden = selected.size === 0 && !busy;
  if (busy) return;
  selectionBar.querySelector(".selected-count").textContent = `${counted(selected.size)} selected`;
  const compare = selectionBar.querySelector("[data-do=compare]");
  compare.disabled = selected.size < 2 || selected.size > MOST_COMPARED;
  compare.title = compare.disabled ? `Select 2 to ${MOST_COMPARED} jobs to compare them` : "";
}

/** Calls `work` for each of the items, a few at a time. */
async function forAll(items, work) {
  const left = [...items];
  const worker = async () => {
    while (left.length) await work(left.shift());
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

/** Does it with all selected jobs; says in one notice how it went, and selects those that refused. */
async function doWithSelected(name) {
  const { verb, done, method, path } = DOING[name];
  const jobs = [...selected];
  const question = ASKED_BEFORE[name]?.(counted(jobs.length));
  if (question && !(await confirmed(question, `${name[0].toUpperCase()}${name.slice(1)} ${counted(jobs.length)}`))) return;
  busy = true;
  for (const button of selectionBar.querySelectorAll("button")) button.disabled = true;
  const count = selectionBar.querySelector(".selected-count");
  let tried = 0;
  const refused = new Map();
  await forAll(jobs, async ([id, title]) => {
    count.textContent = `${verb} ${Math.min(tried + 1, jobs.length)} of ${jobs.length}…`;
    try {
      await ask(method, path(id));
      selected.delete(id);
      if (name === "delete") document.getElementById(`job-${id}`)?.remove();
    } catch (error) {
      refused.set(id, `${title}: ${error.message}`);
    }
    tried += 1;
  });
  busy = false;
  for (const button of selectionBar.querySelectorAll("button")) button.disabled = false;
  showSelection();
  report(jobs.length - refused.size, done, [...refused.values()]);
  document.dispatchEvent(new CustomEvent("acted", { detail: name }));
}

function report(succeeded, done, refusals) {
  const parts = succeeded ? [`${succeeded} ${done}`] : [];
  if (refusals.length) {
    const more = refusals.length > 3 ? `; and ${refusals.length - 3} more` : "";
    parts.push(`${refusals.length} refused: ${refusals.slice(0, 3).join("; ")}${more}`);
  }
  notify(parts.join(", "), refusals.length > 0);
}

if (selectable) {
  selectable.addEventListener("click", (event) => {
    const box = event.target;
    if (box.matches("[data-select-all]")) {
      for (const each of boxes()) select(each, box.checked);
    } else if (box.matches("input[name=job]")) {
      const shown = boxes();
      const [from, to] = [shown.findIndex((each) => each.value === lastClicked), shown.indexOf(box)];
      const range = event.shiftKey && from >= 0 ? shown.slice(Math.min(from, to), Math.max(from, to) + 1) : [box];
      for (const each of range) select(each, box.checked);
      lastClicked = box.value;
    } else {
      return;
    }
    showSelection();
  });
  selectionBar.addEventListener("click", (event) => {
    const what = event.target.closest("button")?.dataset.do;
    if (what === "none") {
      selected.clear();
      showSelection();
    } else if (what === "compare") {
      const ids = [...selected.keys()].map((id) => `job=${encodeURIComponent(id)}`);
      location.assign(address(`compare?${ids.join("&")}`));
    } else if (what) {
      doWithSelected(what);
    }
  });
  document.addEventListener("htmx:after:swap", showSelection);
  // A browser that goes back restores the boxes.
  addEventListener("pageshow", () => {
    for (const box of boxes()) select(box, box.checked);
    showSelection();
  });
}
