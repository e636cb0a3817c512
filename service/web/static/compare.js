// The page that compares jobs: reads their points, and draws a line for each job or group of jobs.
"use strict";

const AT_A_TIME = 4;
const AGAIN_MS = 3000; // what the stream does not bring is fetched, but not more often
const element = (id) => document.getElementById(id);
const part = { metric: element("metric"), axis: element("axis"), log: element("log"), smoothing: element("smoothing"), whole: element("whole"), news: element("curves-news") };
const weight = document.querySelector("output[for=smoothing]");
/** By job: its points, and whether all that there will be are read. */
const jobs = new Map();
let reading = false;
let readAgain = false;

const overlay = new Overlay(element("chart"), element("legend"), (zoomed) => { part.whole.disabled = !zoomed; });

/** What the table of jobs says: [{ id, group, label, ended, attempt }]. */
function compared() {
  return [...document.querySelectorAll("#compare-jobs tr[data-job]")].map(({ dataset }) => ({
    id: dataset.job, group: +dataset.group, label: dataset.label, ended: Boolean(dataset.ended), attempt: +dataset.attempt,
  }));
}

function tell(text) {
  part.news.textContent = text;
  part.news.hidden = !text;
}

/** Reads the points of a job that are not read yet. */
async function readPoints(job) {
  if (!jobs.has(job.id)) {
    const points = new Points();
    jobs.set(job.id, { points, reader: new PointReader(job.id, "curves", points, () => {}), complete: false });
  }
  const known = jobs.get(job.id);
  if (known.complete || !job.attempt) return;
  await known.reader.catchUp();
  known.complete = job.ended;
}

/** Reads what is new of all jobs, and draws it. */
async function readAll() {
  if (reading) {
    readAgain = true;
    return;
  }
  reading = true;
  const all = compared();
  const left = [...all];
  const problems = [];
  let done = 0;
  const slow = setTimeout(() => tell(`Reading the points of ${all.length} jobs…`), 500);
  const worker = async () => {
    for (let job = left.shift(); job; job = left.shift()) {
      try {
        await readPoints(job);
      } catch (error) {
        problems.push(`${job.label}: ${error.message}`);
      }
      done += 1;
      if (!part.news.hidden) tell(`Reading the points of ${all.length} jobs: ${done} read…`);
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, worker));
  clearTimeout(slow);
  tell(problems.join("\n"));
  offerMetrics();
  draw();
  setTimeout(() => {
    reading = false;
    if (readAgain) {
      readAgain = false;
      readAll();
    }
  }, AGAIN_MS);
}

/** Offers the metrics that the page did not know of when it was made. */
function offerMetrics() {
  const known = new Set([...part.metric.options].map((option) => option.value));
  for (const { points } of jobs.values()) {
    for (const name of points.series.keys()) {
      if (known.has(name)) continue;
      known.add(name);
      part.metric.append(new Option(name, name));
    }
  }
  const wanted = element("curves").dataset.metric;
  if (wanted && known.has(wanted)) part.metric.value = wanted;
}

/** The curve of a job's metric, smoothed; none without points. */
function curveOf(job) {
  const points = jobs.get(job.id)?.points;
  const series = points?.series.get(part.metric.value);
  if (!series) return { x: [], y: [] };
  const axis = part.axis.value;
  return series.smoothedAlong(axis, axis === "time" ? points.began : 1, +part.smoothing.value);
}

function linesOf(group) {
  const [{ group: number, label }] = group;
  const curves = group.map(curveOf);
  // Jobs take different times: a mean over time would be of different steps.
  if (curves.length === 1 || part.axis.value === "time") return curves.map((curve) => ({ number, label, curve }));
  const { mean, low, high, rest } = meanOf(curves);
  return [{ number, label, curve: mean, low, high, rest }];
}

function draw() {
  const groups = new Map();
  for (const job of compared()) groups.set(job.group, [...(groups.get(job.group) ?? []), job]);
  const lines = [...groups.values()].flatMap(linesOf);
  overlay.draw(lines, { logarithmic: part.log.checked, place: part.axis.value === "time" ? timePlace : stepPlace });
  element("chart").dataset.points = lines.reduce((sum, { curve }) => sum + curve.x.length, 0);
  paintMarks();
}

function stepPlace(value, short) {
  const text = Math.round(value).toLocaleString("en");
  return short ? text : `at step ${text}`;
}

function timePlace(seconds, short) {
  const whole = Math.round(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const text = `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
  return short ? text : `after ${text}`;
}

function paintMarks() {
  for (const mark of document.querySelectorAll("[data-mark]")) paint(mark, +mark.dataset.mark);
}

part.metric.addEventListener("change", () => {
  element("curves").dataset.metric = part.metric.value;
  keepInUrl({ metric: part.metric.value });
  draw();
});
part.axis.addEventListener("change", () => { overlay.range = null; part.whole.disabled = true; draw(); });
part.log.addEventListener("change", draw);
part.smoothing.addEventListener("input", () => {
  weight.textContent = +part.smoothing.value ? part.smoothing.value : "off";
  draw();
});
part.whole.addEventListener("click", () => overlay.zoom(null));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
let width = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width !== width && width) draw();
  width = contentRect.width;
}).observe(element("chart"));
let soon = 0;
function drawSoon() {
  soon ||= requestAnimationFrame(() => {
    soon = 0;
    offerMetrics();
    draw();
  });
}

document.querySelector("[data-live]").addEventListener("points", (event) => {
  const { data } = event.detail;
  const end = data.indexOf("\n");
  const [id, before, after] = data.slice(0, end < 0 ? data.length : end).split(" ");
  const reader = jobs.get(id)?.reader;
  if (!reader || after === reader.position) return;
  if (reader.follow(before, after, end < 0 ? "" : data.slice(end + 1))) drawSoon();
  else readAll();
});
document.addEventListener("htmx:after:swap", () => {
  paintMarks();
  // The stream brings what a job's spool gets; what the tracking server alone has is read when it has ended.
  if (compared().some(({ id, ended, attempt }) => attempt && !(jobs.get(id)?.complete || (jobs.get(id)?.reader.position && !ended)))) readAll();
});
paintMarks();
readAll();
