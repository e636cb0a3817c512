// The page of a sweep: sorts its points, marks the best ones, and shows them in parallel coordinates.
"use strict";

const table = document.getElementById("points");
const body = () => table.tBodies[0];
const section = document.getElementById("parallel");
const metricChoice = document.getElementById("parallel-metric");
let heads = [];
let sorting = null; // { column, descending }
let drawn = "";

function valueOf(cell) {
  return JSON.parse(cell?.dataset.value || "null");
}

/** The points as the table has them. */
function pointsInTable() {
  return [...body().rows].map((row) => {
    const values = {};
    for (const [column, { dataset }] of heads.entries()) {
      if (dataset.key !== undefined) values[`key ${dataset.key}`] = valueOf(row.cells[column]);
      if (dataset.metric !== undefined) values[`metric ${dataset.metric}`] = valueOf(row.cells[column]);
    }
    return { id: row.id, row, title: row.querySelector("th").title, values };
  });
}

// Sorting

/** Takes the columns as the table has them, and lets them be sorted by. */
function prepareHeads() {
  heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    if (head.dataset.sortable === undefined) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "plain";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      sorting = { column, descending: sorting?.column === column && !sorting.descending };
      sort();
    });
  }
}
prepareHeads();

function compared(a, b) {
  const [none, other] = [a === null, b === null];
  if (none || other) return null;
  return typeof a === "number" && typeof b === "number" ? a - b : named(a).localeCompare(named(b), "en", { numeric: true });
}

/** Sorts the rows; those without a value stay last in both directions. */
function sort() {
  if (!sorting) return;
  const { column, descending } = sorting;
  for (const [i, head] of heads.entries()) {
    if (i === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  const rows = [...body().rows].map((row) => [valueOf(row.cells[column]), row]);
  rows.sort(([a], [b]) => compared(a, b) ?? (a === null) - (b === null));
  if (descending) {
    const known = rows.filter(([value]) => value !== null).reverse();
    rows.splice(0, known.length, ...known);
  }
  // Rows that stay where they are keep the focus and the place of the page.
  rows.forEach(([, row], i) => {
    if (body().rows[i] !== row) body().insertBefore(row, body().rows[i] ?? null);
  });
}

// The best values

function markBest() {
  for (const [column, head] of heads.entries()) {
    const mode = head.dataset.mode;
    if (!mode) continue;
    let best = null;
    for (const row of body().rows) {
      const value = valueOf(row.cells[column]);
      row.cells[column].classList.remove("best");
      if (value === null || ["failed", "cancelled"].includes(row.dataset.state)) continue;
      if (best === null || (mode === "min" ? value < best.value : value > best.value)) best = { value, cell: row.cells[column] };
    }
    if (best) best.cell.classList.add("best");
    for (const row of body().rows) row.cells[column].title = row.cells[column].classList.contains("best") ? "The best" : "";
  }
}

// Parallel coordinates

const plot = new ParallelCoordinates(section.querySelector("svg"), showChosen);

/** Draws the points anew if they are others than before. */
function drawPlot(again = false) {
  const metric = metricChoice.value;
  const names = heads.filter((head) => head.dataset.key !== undefined).map((head) => [`key ${head.dataset.key}`, head.textContent]);
  if (metric) names.push([`metric ${metric}`, metric]);
  section.hidden = names.length < 2;
  if (section.hidden) return;
  const points = pointsInTable();
  const now = JSON.stringify([metric, points.map((point) => point.values)]);
  if (again || now !== drawn) {
    drawn = now;
    points.sort((a, b) => a.id.localeCompare(b.id));
    plot.draw(points, names);
  }
  showChosen();
}

/** Hides the rows of the points that are not in the chosen ranges, and says how many are shown. */
function showChosen() {
  const points = pointsInTable();
  let shown = 0;
  for (const point of points) {
    point.row.hidden = !plot.includes(point);
    if (!point.row.hidden) shown += 1;
  }
  const chosen = plot.ranges.size > 0;
  document.getElementById("parallel-clear").hidden = !chosen;
  document.getElementById("parallel-count").textContent = chosen ? `${shown} of ${points.length} points chosen` : "";
  for (const box of table.querySelectorAll("tr[hidden] input:checked")) box.click();
}

metricChoice.addEventListener("change", () => drawPlot());
document.getElementById("parallel-clear").addEventListener("click", () => plot.clear());
body().addEventListener("pointerover", (event) => plot.lines && plot.highlight(event.target.closest("tr")?.id));
body().addEventListener("pointerleave", () => plot.lines && plot.highlight(""));
new ResizeObserver(() => drawPlot(true)).observe(section.querySelector(".scroll"));

// Live: the stream sends the points that are likely to have changed; all of them are fetched if it missed one.

let fetching = false;

/** Returns whether the table lacks columns, or changes of points. */
function isBehind() {
  const { counts: given, metrics } = document.getElementById("sweep").dataset;
  if (JSON.stringify(metricsInTable()) !== JSON.stringify(JSON.parse(metrics))) return true;
  const [counts, shown] = [JSON.parse(given), {}];
  for (const row of body().rows) shown[row.dataset.state] = (shown[row.dataset.state] ?? 0) + 1;
  return Object.keys({ ...counts, ...shown }).some((state) => counts[state] !== shown[state]);
}

function metricsInTable() {
  return heads.map((head) => head.dataset.metric).filter((name) => name !== undefined);
}

/** Puts the columns of a fresh page in place of those that there are; those of metrics may be new. */
function replaceHeads(fresh) {
  const sorted = sorting && heads[sorting.column].textContent;
  table.tHead.replaceWith(document.adoptNode(fresh.querySelector("#points thead")));
  prepareHeads();
  const column = heads.findIndex((head) => head.textContent === sorted);
  sorting = sorting && column >= 0 ? { ...sorting, column } : null;
  const metric = metricChoice.value;
  metricChoice.replaceChildren(...metricsInTable().map((name) => new Option(name, name, false, name === metric)));
}

async function catchUp() {
  if (fetching || !isBehind()) return;
  fetching = true;
  try {
    const text = await ask("GET", location.pathname.slice(root.pathname.length));
    // A page of this service, in which every text is escaped, as it was when this one was loaded.
    const fresh = new DOMParser().parseFromString(text, "text/html");
    replaceHeads(fresh);
    body().replaceWith(document.adoptNode(fresh.querySelector("#points tbody")));
    update();
  } catch {
    // The stream says that the service is away, and comes again when it is back.
  } finally {
    fetching = false;
  }
}

function update() {
  sort();
  markBest();
  drawPlot();
  showSelection();
}

let soon = 0;
document.addEventListener("htmx:after:swap", () => {
  cancelAnimationFrame(soon); // once for all rows of a message, and before they are seen without marks
  soon = requestAnimationFrame(() => { update(); catchUp(); });
});
update();
