// The tab of a job's machines: what they used, each in charts of its own, asked for now and then.
"use strict";

const page = document.getElementById("system");
const part = (name) => page.querySelector(`[data-part=${name}]`);
const points = new Points();
const view = new Board(points);
view.axis = "time";
const EVERY_MS = 15000;
const UNITS = { percentage: "%", megabytes: "MB", gigabytes: "GB", watts: "W" };

/** The machine and the chart of a metric system/[node-N_]NAME: { machine, title }; GPUs of a machine share one. */
function placeOf(name) {
  const [, node, bare] = /^system\/(?:node-(\d+)_)?(.*)$/.exec(name);
  const words = bare.replace(/^gpu_\d+_/, "GPU_").replace(/^cpu_/, "CPU_").replace(/^system_/, "").split("_");
  const unit = UNITS[words[words.length - 1]];
  if (unit) words.splice(-1, 1, `(${unit})`);
  const title = words.join(" ");
  return { machine: +(node ?? 0), title: title.charAt(0).toUpperCase() + title.slice(1) };
}

function sectionOf(machine) {
  const known = page.querySelector(`[data-machine="${machine}"]`);
  if (known) return known.querySelector(".charts");
  const [section, heading, charts] = ["section", "h3", "div"].map((tag) => document.createElement(tag));
  section.dataset.machine = machine;
  heading.id = `machine-${machine}`;
  heading.textContent = machine ? `Machine ${machine + 1}` : "Machine 1, of rank 0";
  section.setAttribute("aria-labelledby", heading.id);
  charts.className = "charts";
  section.append(heading, charts);
  const later = [...page.querySelectorAll("[data-machine]")].find((each) => +each.dataset.machine > machine);
  part("machines").insertBefore(section, later ?? null);
  return charts;
}

function update() {
  const groups = new Map();
  for (const name of [...points.series.keys()].sort()) {
    const { machine, title } = placeOf(name);
    const key = `${machine} ${title}`;
    if (!groups.has(key)) groups.set(key, { machine, title, names: [] });
    groups.get(key).names.push(name);
  }
  for (const [key, { machine, title, names }] of groups) {
    const chart = view.charts.get(key);
    if (!chart) sectionOf(machine).append(view.add(key, title, names, 4).figure);
    else if (chart.names.length !== names.length) chart.rebuild(names);
  }
  part("empty").hidden = points.series.size > 0;
  part("note").hidden = points.series.size === 0;
  view.drawSoon();
}

function tell(text, failed = false) {
  const line = part("news");
  line.textContent = text;
  line.hidden = !text;
  line.className = failed ? "problem" : "note";
}

async function read() {
  const slow = setTimeout(() => tell("MLflow is asked for the metrics of the machines."), 500);
  try {
    const text = await ask("GET", `data/jobs/${page.dataset.job}/history?kind=system`);
    points.clear();
    points.read(text);
    tell("");
    update();
  } catch (error) {
    if (error.problem?.status === 404) return; // deleted: the header says so
    tell(tryingAgain(error), true);
  } finally {
    clearTimeout(slow);
  }
  if (document.getElementById("job-header").dataset.ended && part("news").hidden) return;
  setTimeout(read, EVERY_MS);
}

read();
