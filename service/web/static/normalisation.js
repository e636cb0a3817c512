// The tab of a job's normalisation: heat maps of layers by steps, and the history of one layer.
"use strict";

const page = document.getElementById("normalisation");
const part = (name) => page.querySelector(`[data-part=${name}]`);
const points = new Points();
const reader = new PointReader(page.dataset.job, "norm", points, (text) => tell(text));
const view = new Board(points);
const EVERY_MS = 5000;
const [LOWEST, HIGHEST] = [0.01, 1];
const STOPS = [[48, 18, 59], [33, 84, 150], [28, 150, 139], [126, 196, 84], [249, 231, 33]];
const layers = new Map(); // by name: a map from measure to Series
let chosen = null;

/** The colour of a value between LOWEST and HIGHEST, by its logarithm. */
function heat(value) {
  const place = Math.log(Math.max(value, LOWEST) / LOWEST) / Math.log(HIGHEST / LOWEST);
  const at = Math.min(Math.max(place, 0), 1) * (STOPS.length - 1);
  const [low, rest] = [Math.floor(at), at - Math.floor(at)];
  const next = STOPS[Math.min(low + 1, STOPS.length - 1)];
  return `rgb(${STOPS[low].map((c, i) => Math.round(c + rest * (next[i] - c))).join(" ")})`;
}

function median(values) {
  const sorted = Float64Array.from(values).filter(Number.isFinite).sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** A heat map of one measure: a row a layer, a column for one or several steps, whose highest value counts. */
class HeatMap {
  constructor(figure) {
    this.figure = figure;
    [this.canvas, this.place] = [figure.querySelector("canvas"), figure.querySelector(".chart-place")];
    this.canvas.addEventListener("mousemove", (event) => this._hover(event));
    this.canvas.addEventListener("mouseleave", () => { this.place.textContent = ""; });
    this.canvas.addEventListener("click", (event) => { const at = this._at(event); if (at) choose(at.layer); });
  }

  draw(measure) {
    this.measure = measure;
    const names = [...layers.keys()].filter((layer) => layers.get(layer).has(measure));
    const steps = [...new Set(names.flatMap((layer) => [...this._of(layer).x]))].sort((a, b) => a - b);
    [this.names, this.steps] = [names, steps];
    const width = this.canvas.parentElement.clientWidth;
    if (!width || !names.length) return;
    const dots = devicePixelRatio || 1;
    const pen = this.canvas.getContext("2d");
    const font = "11px system-ui, sans-serif";
    pen.font = font;
    this.row = Math.max(5, Math.min(20, 480 / names.length));
    const widest = Math.max(...names.map((layer) => pen.measureText(layer).width));
    this.left = this.row >= 10 ? Math.min(widest + 10, width * 0.4) : 0;
    this.columns = Math.max(1, Math.min(steps.length, Math.floor(width - this.left)));
    this.column = (width - this.left) / this.columns;
    const height = this.row * names.length;
    [this.canvas.width, this.canvas.height] = [Math.round(width * dots), Math.round(height * dots)];
    this.canvas.style.height = `${height}px`;
    pen.scale(dots, dots);
    pen.font = font;
    pen.textBaseline = "middle";
    names.forEach((layer, number) => {
      const top = number * this.row;
      const cells = this._cells(layer);
      for (let i = 0; i < this.columns; i++) {
        if (cells[i] === undefined) continue;
        pen.fillStyle = heat(cells[i]);
        pen.fillRect(this.left + i * this.column, top, Math.ceil(this.column), Math.ceil(this.row));
      }
      if (!this.left) return;
      pen.save();
      pen.beginPath();
      pen.rect(0, top, this.left - 6, this.row);
      pen.clip();
      pen.fillStyle = colour("--text");
      pen.fillText(layer, 0, top + this.row / 2);
      pen.restore();
    });
    this.canvas.setAttribute("aria-label", `Heat map of ${measure}: ${names.length} layers by ${steps.length} observed steps. The table below has its figures.`);
  }

  _of(layer) {
    return layers.get(layer).get(this.measure).along("step", 1);
  }

  _columnOf(index) {
    return Math.floor((index * this.columns) / this.steps.length);
  }

  _cells(layer) {
    const { x, y } = this._of(layer);
    const cells = new Array(this.columns);
    let at = 0;
    for (let i = 0; i < x.length; i++) {
      while (this.steps[at] !== x[i]) at++;
      const column = this._columnOf(at);
      if (Number.isFinite(y[i]) && !(cells[column] >= y[i])) cells[column] = y[i];
    }
    return cells;
  }

  _at(event) {
    const [x, y] = [event.offsetX - this.left, event.offsetY];
    const layer = this.names?.[Math.floor(y / this.row)];
    if (layer === undefined) return null;
    const column = Math.max(0, Math.min(Math.floor(x / this.column), this.columns - 1));
    const first = this.steps.findIndex((_, i) => this._columnOf(i) === column);
    return { layer, step: this.steps[first], value: this._cells(layer)[column] };
  }

  _hover(event) {
    const at = this._at(event);
    this.place.textContent = at ? `${at.layer}, step ${at.step}: ${at.value === undefined ? "not observed" : valueText(at.value)}` : "";
  }
}

const maps = { noise: new HeatMap(part("noise")), drift: new HeatMap(part("drift")) };

function draw() {
  const of = part("of").value;
  maps.noise.draw(`${of}_noise`);
  maps.drift.draw(`${of}_drift`);
  view.drawSoon();
}

/** Shows one layer's history. */
function choose(layer) {
  chosen = layer;
  part("layer").value = layer;
  for (const key of [...view.charts.keys()]) view.remove(key);
  const named = (ends) => [...layers.get(layer).keys()].filter((measure) => measure.endsWith(ends)).map((measure) => `norm/${layer}/${measure}`);
  for (const [title, ends] of [["noise", "_noise"], ["drift", "_drift"]]) {
    const names = named(ends);
    if (names.length) part("charts").append(view.add(title, `${layer}: ${title}`, names).figure);
  }
  view.drawSoon();
}

function readLayers() {
  for (const [name, series] of points.series) {
    const [, layer, measure] = /^norm\/(.*)\/([^/]*)$/s.exec(name) ?? [];
    if (!measure) continue;
    if (!layers.has(layer)) layers.set(layer, new Map());
    series.settle();
    layers.get(layer).set(measure, series);
  }
}

function fillTable() {
  const rows = [...layers].map(([layer, measures]) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = layer;
    row.append(head);
    for (const measure of ["mean_noise", "var_noise", "mean_drift", "var_drift", "dead", "exploding"]) {
      const cell = document.createElement("td");
      cell.className = "number right";
      const all = measures.get(measure)?.along("step", 1).y;
      const isCount = measure === "dead" || measure === "exploding";
      cell.textContent = all?.length ? valueText(isCount ? all[all.length - 1] : +median(all).toPrecision(3)) : "";
      row.append(cell);
    }
    return row;
  });
  part("rows").replaceChildren(...rows);
}

async function sayWhatFollows() {
  const noises = [...layers.values()].map((measures) => measures.get("mean_noise")).filter(Boolean);
  const noise = median(noises.map((series) => median(series.along("step", 1).y)));
  if (!Number.isFinite(noise)) return;
  const { words } = await ask("GET", `data/jobs/${page.dataset.job}/noise?noise=${noise}`);
  const said = words.map((text) => {
    const line = document.createElement("p");
    line.textContent = text;
    return line;
  });
  part("words").replaceChildren(...said);
}

function tell(text, failed = false) {
  const line = part("news");
  line.textContent = text;
  line.hidden = !text;
  line.className = failed ? "problem" : "note";
}

async function show() {
  const known = layers.size;
  readLayers();
  part("empty").hidden = layers.size > 0;
  part("shown").hidden = layers.size === 0;
  if (!layers.size) return;
  if (layers.size !== known) {
    part("layer").replaceChildren(...[...layers.keys()].map((layer) => new Option(layer, layer)));
    if (chosen === null) choose(layers.keys().next().value);
    else part("layer").value = chosen;
  }
  draw();
  fillTable();
  await sayWhatFollows();
}

async function read() {
  try {
    const before = reader.position;
    await reader.catchUp();
    if (!layers.size || before !== reader.position || !reader.position) await show();
  } catch (error) {
    if (error.problem?.status === 404) return; // deleted: the header says so
    tell(tryingAgain(error), true);
  }
  if (document.getElementById("job-header").dataset.ended && part("news").hidden) return;
  setTimeout(read, reader.position ? EVERY_MS : 3 * EVERY_MS);
}

part("of").addEventListener("change", draw);
part("layer").addEventListener("change", (event) => choose(event.target.value));
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
read();
