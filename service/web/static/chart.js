// Charts of curves: drawn by uPlot from thinned points, with legends that say the values at the pointer.
"use strict";

const CHART_HEIGHT = 240;

/** A moment on an axis in words. */
function placeText(axis, value) {
  if (axis === "step") return `step ${Math.round(value).toLocaleString("en")}`;
  if (axis === "epoch") return `epoch ${value.toFixed(2)}`;
  return `after ${clockText(value)}`;
}

/** Seconds as 1:02:03. */
function clockText(seconds) {
  const whole = Math.round(Math.abs(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return `${seconds < 0 ? "−" : ""}${h ? `${h}:${two(m)}` : m}:${two(s)}`;
}

function valueText(value) {
  if (value === undefined) return "";
  return Number.isFinite(value) ? String(+value.toPrecision(5)) : String(value);
}

/** A number on an axis, in the room that there is: 0.25, 1,500, 6e16. uPlot leaves some places empty: null. */
function tickText(value) {
  if (value === null) return "";
  const [exact, size] = [+value.toPrecision(6), Math.abs(value)];
  if (size >= 1e6 || (size > 0 && size < 1e-4)) return exact.toExponential().replace("e+", "e");
  return exact.toLocaleString("en", { maximumFractionDigits: 9 });
}

/** The colour of a variable of the page's style, as it is now: light or dark. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Which colour a metric has in its chart: train, val and test have the same ones everywhere. */
function colourOf(name, number) {
  const known = ["train", "val", "test"].findIndex((prefix) => name.startsWith(prefix) || name.startsWith(`best_${prefix}`));
  return known >= 0 ? `--curve-${known + 1}` : `--curve-${(number % 6) + 1}`;
}

class Chart {
  /**
   * figure: an element `figure`. view: the Board that it is on. names: of its metrics. level: of its heading.
   */
  constructor(figure, title, names, points, view, level = 3) {
    [this.figure, this.title, this.names, this.points, this.view] = [figure, title, names, points, view];
    this.seen = false;
    this.plot = null;
    this.caption = document.createElement("figcaption");
    this.place = document.createElement("span");
    this.place.className = "chart-place";
    this.canvas = document.createElement("div");
    this.canvas.className = "chart-canvas";
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-roledescription", "chart");
    steerByKeys(this.canvas, () => view.all(), (from, to) => view.zoom(from, to));
    this.legend = document.createElement("ul");
    this.legend.className = "chart-legend";
    const heading = document.createElement(`h${level}`);
    heading.textContent = title;
    this.caption.append(heading, this.place);
    figure.append(this.caption, this.canvas, this.legend);
    this.described = "";
    this._list();
  }

  /** Forgets how it was drawn: another scale, other metrics, other colours. */
  rebuild(names = this.names) {
    this.names = names;
    this.plot?.destroy();
    this.plot = null;
    this.described = "";
    this._list();
  }

  /** Shows what is in the view now. */
  draw() {
    const state = `${this.view.axis} ${this._series().map((series) => series.version)}`;
    if (state !== this.described) {
      this.described = state;
      this.tell(null);
      this._describe();
    }
    if (!this.seen || !this.canvas.clientWidth) return;
    const width = this.canvas.clientWidth;
    if (!this.plot) this._build(width);
    else if (this.plot.width !== width) this.plot.setSize({ width, height: CHART_HEIGHT });
    const curves = this._curves(Math.max(width - 70, 50));
    this.drawn = curves.reduce((sum, curve) => sum + curve.x.length, 0);
    this.plot.setData(aligned(curves));
  }

  _series() {
    return this.names.map((name) => this.points.of(name));
  }

  _curves(columns) {
    const { axis, smoothing, logarithmic } = this.view;
    const [from, to] = this.view.all();
    return this._series().flatMap((series) => {
      const raw = series.along(axis, this.view.scale());
      const kinds = smoothing ? [raw, series.smoothedAlong(axis, this.view.scale(), smoothing)] : [raw];
      return kinds.map((curve) => thinned(curve, from, to, columns, logarithmic));
    });
  }

  _build(width) {
    const series = [{}];
    this.names.forEach((name, i) => {
      const stroke = colour(colourOf(name, i));
      const one = { stroke, width: 1.5, spanGaps: false, points: { size: 5 } };
      if (this.view.smoothing) series.push({ ...one, alpha: 0.3, width: 1, points: { show: false } });
      series.push(one);
    });
    const line = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
    const bottom = { ...line, size: 32 };
    if (this.view.axis === "time") bottom.values = (_, all) => all.map(clockText);
    const options = {
      width,
      height: CHART_HEIGHT,
      legend: { show: false },
      scales: {
        x: { time: false, range: () => this.view.all() },
        y: { distr: this.view.logarithmic ? 3 : 1 },
      },
      axes: [bottom, { ...line, size: 62, values: (_, all) => all.map(tickText) }],
      series,
      cursor: {
        y: false,
        points: { show: false },
        drag: { x: true, y: false, setScale: false },
        bind: {
          mousedown: (plot, _, handler) => (event) => (event.shiftKey ? this._pan(event) : handler(event)),
          dblclick: () => () => this.view.zoom(null, null),
        },
      },
      hooks: {
        setSelect: [(plot) => this._select(plot)],
        setCursor: [(plot) => this.view.hover(plot.cursor.left >= 0 ? plot.posToVal(plot.cursor.left, "x") : null)],
      },
    };
    this.plot = new uPlot(options, aligned([...Array(series.length - 1)].map(() => ({ x: [], y: [] }))), this.canvas);
    this.plot.over.addEventListener("wheel", (event) => this._wheel(event), { passive: false });
  }

  _list() {
    this.legend.replaceChildren();
    this.values = [];
    this.names.forEach((name, i) => this._addToLegend(name, colour(colourOf(name, i))));
  }

  _addToLegend(name, stroke) {
    const [item, mark, label, value] = ["li", "span", "span", "span"].map((tag) => document.createElement(tag));
    mark.className = "chart-mark";
    mark.style.background = stroke;
    label.textContent = name;
    value.className = "number";
    item.append(mark, label, value);
    this.legend.append(item);
    this.values.push(value);
  }

  /** Says the values at a place on the axis; null: the last ones. */
  tell(place) {
    this.place.textContent = place === null ? "" : placeText(this.view.axis, place);
    this._series().forEach((series, i) => {
      const { x, y } = series.along(this.view.axis, this.view.scale());
      let at = x.length - 1;
      if (place !== null) {
        at = Math.min(firstAtLeast(x, place), x.length - 1);
        if (at > 0 && place - x[at - 1] < x[at] - place) at--;
      }
      const text = valueText(y[at]);
      if (this.values[i].textContent !== text) this.values[i].textContent = text;
    });
  }

  _describe() {
    const each = this._series().map((series) => {
      const { x, y } = series.along(this.view.axis, this.view.scale());
      return `${series.name}: ${series.length} points, the last ${valueText(y[y.length - 1])} at ${placeText(this.view.axis, x[x.length - 1] ?? 0)}`;
    });
    this.canvas.setAttribute("aria-label", `Chart of ${this.title}. ${each.join("; ")}. ${STEERING}`);
  }

  _select(plot) {
    const { left, width } = plot.select;
    if (width < 3) return;
    const [from, to] = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.view.zoom(from, to);
  }

  _pan(down) {
    const [from, to] = this.view.all();
    const perPixel = (to - from) / this.plot.over.clientWidth;
    const move = (event) => {
      const by = (down.clientX - event.clientX) * perPixel;
      this.view.zoom(from + by, to + by);
    };
    const up = () => {
      removeEventListener("mousemove", move);
      removeEventListener("mouseup", up);
    };
    addEventListener("mousemove", move);
    addEventListener("mouseup", up);
  }

  _wheel(event) {
    if (!event.ctrlKey && !event.shiftKey) return; // the page scrolls
    event.preventDefault();
    const [from, to] = this.view.all();
    if (event.shiftKey) {
      const by = ((event.deltaX || event.deltaY) / this.plot.over.clientWidth) * (to - from);
      this.view.zoom(from + by, to + by);
      return;
    }
    const factor = Math.exp(Math.max(-100, Math.min(event.deltaY, 100)) / 300);
    const at = this.plot.posToVal(event.offsetX, "x");
    this.view.zoom(at - (at - from) * factor, at + (to - at) * factor);
  }
}

/** Charts that show the same range of one axis. */
class Board {
  constructor(points, stepsPerEpoch = NaN) {
    [this.points, this.stepsPerEpoch] = [points, stepsPerEpoch];
    this.charts = new Map();
    this.axis = "step"; // or "epoch", "time"
    this.logarithmic = false;
    this.smoothing = 0;
    this.from = this.to = null;
    this.dirty = false;
    this.zoomed = () => {};
    this._watcher = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const chart = this.charts.get(target.dataset.group);
        if (chart) chart.seen = isIntersecting;
      }
      this.drawSoon();
    }, { rootMargin: "200px" });
    addEventListener("resize", () => this.drawSoon());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
  }

  /** Makes a chart; its element `figure` has to be put into the page. */
  add(key, title, names, level = 3) {
    const figure = document.createElement("figure");
    figure.className = "chart";
    figure.dataset.group = key;
    const chart = new Chart(figure, title, names, this.points, this, level);
    this.charts.set(key, chart);
    this._watcher.observe(figure);
    return chart;
  }

  remove(key) {
    const chart = this.charts.get(key);
    this._watcher.unobserve(chart.figure);
    chart.rebuild();
    chart.figure.remove();
    this.charts.delete(key);
  }

  /** What divides steps, or is taken from times. */
  scale() {
    if (this.axis === "epoch") return this.stepsPerEpoch;
    return this.axis === "time" ? this.points.began : 1;
  }

  /** The range that is shown. */
  all() {
    if (this.from !== null) return [this.from, this.to];
    let [low, high] = [Infinity, -Infinity];
    for (const chart of this.charts.values()) {
      if (chart.figure.hidden) continue;
      for (const name of chart.names) {
        const { x } = this.points.of(name).along(this.axis, this.scale());
        if (x.length) [low, high] = [Math.min(low, x[0]), Math.max(high, x[x.length - 1])];
      }
    }
    if (low > high) return [0, 1];
    return low === high ? [low - 1, high + 1] : [low, high];
  }

  /** Shows a range; nulls: all there is. */
  zoom(from, to) {
    if (from !== null && !(to - from > 1e-9 * Math.max(Math.abs(from), Math.abs(to), 1))) return;
    [this.from, this.to] = [from, to];
    this.zoomed(from === null ? null : [from, to]);
    this.drawSoon();
  }

  hover(place) {
    for (const chart of this.charts.values()) if (chart.seen && !chart.figure.hidden) chart.tell(place);
  }

  drawSoon() {
    if (this.dirty) return;
    this.dirty = true;
    requestAnimationFrame(() => {
      this.dirty = false;
      for (const chart of this.charts.values()) if (!chart.figure.hidden) chart.draw();
    });
  }

  rebuild() {
    for (const chart of this.charts.values()) chart.rebuild();
    this.drawSoon();
  }
}
