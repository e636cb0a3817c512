// The tab of a job's curves: which charts there are, what they show, and the points that come while it trains.
"use strict";

const page = document.getElementById("curves");
const part = (name) => page.querySelector(`[data-part=${name}]`);
const FIRST_CHARTS = 12;
const ASK_AGAIN_MS = 15000;

/** The chart that a metric belongs to: train, val and test of the same thing, by step or epoch, share one. */
function groupOf(name) {
  const bare = name.replace(/^best_/, "").replace(/^(train|val|valid|test)[_/]/, "").replace(/[_/](step|epoch)$/, "");
  return bare || name;
}

/** The order within a chart: train, val, test, others. */
function roleOf(name) {
  const role = ["train", "val", "test"].findIndex((prefix) => name.startsWith(prefix));
  return role < 0 ? 3 : role;
}

/** Losses and accuracies first, then by name; the learning rate last. */
function orderOf(group) {
  if (/^loss$/.test(group)) return `0 ${group}`;
  if (/acc/.test(group)) return `1 ${group}`;
  return group === "learning_rate" ? `9 ${group}` : `5 ${group}`;
}

const points = new Points();
const reader = new PointReader(page.dataset.job, "curves", points, (text) => tell(text));
const view = new Board(points, +page.dataset.stepsPerEpoch);
const { charts } = view;
const wanted = new URLSearchParams(location.search);
/** The groups that alone are shown, or those that alone are not; null and null: nobody has chosen yet. */
let [shown, hidden] = ["show", "hide"].map((name) => (wanted.has(name) ? new Set(wanted.getAll(name)) : null));
view.zoomed = (range) => {
  part("whole").disabled = range === null;
  keepInUrl({ from: range && +range[0].toPrecision(7), to: range && +range[1].toPrecision(7) });
};

/** Shows the points that have come. */
function update() {
  const groups = new Map();
  for (const name of points.series.keys()) {
    const group = groupOf(name);
    groups.set(group, [...(groups.get(group) ?? []), name]);
  }
  for (const names of groups.values()) names.sort((a, b) => roleOf(a) - roleOf(b) || (a < b ? -1 : 1));
  for (const [group, chart] of charts) {
    if (groups.has(group)) continue;
    view.remove(group);
  }
  let changed = false;
  for (const [group, names] of groups) {
    const chart = charts.get(group);
    if (!chart) {
      view.add(group, group, names);
      changed = true;
    } else if (chart.names.length !== names.length) chart.rebuild(names);
  }
  if (changed) arrange();
  let number = 0;
  for (const series of points.series.values()) {
    series.settle();
    number += series.length;
  }
  part("number").textContent = number ? `${number.toLocaleString("en")} points of ${points.series.size.toLocaleString("en")} metrics` : "";
  part("empty").hidden = number > 0;
  part("tools").hidden = part("choice").hidden = number === 0;
  view.drawSoon();
}

/** Puts charts and the list of them in order, and shows the chosen ones. */
function arrange() {
  const groups = [...charts.keys()].sort((a, b) => (orderOf(a) < orderOf(b) ? -1 : 1));
  const isHidden = (group, i) => (shown ? !shown.has(group) : hidden ? hidden.has(group) : i >= FIRST_CHARTS);
  const off = new Set(groups.filter(isHidden));
  const boxes = groups.map((group) => {
    const [label, box] = [document.createElement("label"), document.createElement("input")];
    [box.type, box.checked, box.value] = ["checkbox", !off.has(group), group];
    label.append(box, ` ${group}`);
    label.title = charts.get(group).names.join(", ");
    return label;
  });
  part("boxes").replaceChildren(...boxes);
  for (const group of groups) {
    const { figure } = charts.get(group);
    figure.hidden = off.has(group);
    part("charts").append(figure);
  }
  filterBoxes();
  sayChoice();
}

function sayChoice() {
  const shown = [...charts.values()].filter((chart) => !chart.figure.hidden).length;
  part("chosen").textContent = `${shown} of ${charts.size}`;
}

function filterBoxes() {
  const wanted = part("filter").value.toLowerCase();
  for (const label of part("boxes").children) label.hidden = !label.title.toLowerCase().includes(wanted);
}

function choose() {
  const boxes = [...part("boxes").querySelectorAll("input")];
  const [on, off] = [true, false].map((checked) => boxes.filter((box) => box.checked === checked).map((box) => box.value));
  const few = on.length && on.length < off.length; // the shorter list of the two is the shorter URL
  [shown, hidden] = few ? [new Set(on), null] : [null, new Set(off)];
  for (const [group, chart] of charts) chart.figure.hidden = off.includes(group);
  keepInUrl({ show: few ? on : null, hide: few ? null : off.length ? off : "" });
  sayChoice();
  view.drawSoon();
}

function chooseAll(checked) {
  for (const label of part("boxes").children) if (!label.hidden) label.firstChild.checked = checked;
  choose();
}

function tell(text, failed = false) {
  const line = part("news");
  line.textContent = text;
  line.hidden = !text;
  line.className = failed ? "problem" : "note";
}

/** Reads what there is; where that fails, says why and tries again. */
async function read() {
  let wait = 0;
  try {
    await reader.catchUp();
    const ended = document.getElementById("job-header").dataset.ended;
    if (!reader.position && !ended) wait = ASK_AGAIN_MS; // MLflow alone has them: nothing says when there are more
  } catch (error) {
    if (error.problem?.status === 404) return; // deleted: the header says so
    tell(tryingAgain(error), true);
    wait = 5000;
  }
  update();
  if (wait) setTimeout(read, wait);
}

document.querySelector("[data-live]").addEventListener("points", (event) => {
  const { data } = event.detail;
  const end = data.indexOf("\n");
  const [, before, after] = data.slice(0, end < 0 ? data.length : end).split(" ");
  if (after === reader.position) return;
  if (reader.follow(before, after, end < 0 ? "" : data.slice(end + 1))) update();
  else if (reader.position) read(); // before that the first reading is under way, or waits for its next time
});

/** Zooms by a factor about the middle, or moves by a part of what is shown. */
function steer(factor, by) {
  view.zoom(...steered(view.all(), factor, by));
}

function download() {
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  const parts = ["metric,step,time,value\n"];
  for (const chart of charts.values()) {
    if (chart.figure.hidden) continue;
    for (const name of chart.names) {
      const series = points.of(name);
      series.settle();
      const rows = [];
      for (let i = 0; i < series.length; i++) {
        rows.push(`${quoted(name)},${series.steps[i]},${new Date(series.times[i]).toISOString()},${series.values[i]}\n`);
      }
      parts.push(rows.join(""));
    }
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type: "text/csv" }));
  link.download = `${page.dataset.job}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

part("axis").addEventListener("change", (event) => {
  view.axis = event.target.value;
  keepInUrl({ along: view.axis === "step" ? null : view.axis });
  view.zoom(null, null);
  view.rebuild();
});
part("log").addEventListener("change", (event) => {
  view.logarithmic = event.target.checked;
  keepInUrl({ log: view.logarithmic || null });
  view.rebuild();
});
part("smooth").addEventListener("input", (event) => {
  const had = view.smoothing > 0;
  view.smoothing = +event.target.value;
  part("weight").textContent = view.smoothing ? view.smoothing.toFixed(2) : "off";
  keepInUrl({ smooth: view.smoothing || null });
  if (had !== view.smoothing > 0) view.rebuild();
  else view.drawSoon();
});
part("whole").addEventListener("click", () => view.zoom(null, null));
part("closer").addEventListener("click", () => steer(0.5, 0));
part("wider").addEventListener("click", () => steer(2, 0));
part("earlier").addEventListener("click", () => steer(1, -0.25));
part("later").addEventListener("click", () => steer(1, 0.25));
part("csv").addEventListener("click", download);
part("boxes").addEventListener("change", choose);
part("filter").addEventListener("input", filterBoxes);
part("all").addEventListener("click", () => chooseAll(true));
part("none").addEventListener("click", () => chooseAll(false));

/** Sets the controls as the URL says. */
function restore() {
  for (const [name, text, kind] of [["axis", wanted.get("along"), "change"], ["smooth", wanted.get("smooth"), "input"]]) {
    if (text === null || (name === "axis" && ![...part(name).options].some((option) => option.value === text))) continue;
    part(name).value = text;
    part(name).dispatchEvent(new Event(kind));
  }
  if (wanted.has("log")) part("log").click();
  const range = ["from", "to"].map((name) => (wanted.has(name) ? +wanted.get(name) : NaN));
  if (range.every(Number.isFinite)) view.zoom(...range);
}
restore();
read();
