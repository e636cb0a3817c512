// A chart of curves of several jobs over each other, with a band where a line is the mean of several.
"use strict";

const OVERLAY_HEIGHT = 340;
/** Distances between the places that an axis names: there is no half step. */
const WHOLE = Array.from({ length: 12 }, (_, i) => [1, 2, 5].map((part) => part * 10 ** i)).flat();
const HUES = [217, 25, 140, 285, 0, 190, 330, 50, 100, 250];

/** Whether the page is dark now. */
function isDark() {
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** The colour of a line, and whether it is dashed: there are more lines than colours that can be told apart. */
function strokeOf(number) {
  const hue = HUES[(number - 1) % HUES.length];
  return { colour: isDark() ? `hsl(${hue} 75% 70%)` : `hsl(${hue} 70% 40%)`, dashed: number > HUES.length };
}

function styleOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/**
 * The mean of curves at each place at which one has a finite value, and one standard deviation around it:
 * { mean, low, high, rest }, each { x, y }. low and high have values where two curves or
 * more do. Where the first of the curves has ended, the mean ends, too: what follows would jump there, and is
 * `rest`.
 */
function meanOf(curves) {
  const some = curves.filter((curve) => curve.x.length);
  const end = some.length ? Math.min(...some.map((curve) => curve.x[curve.x.length - 1])) : 0;
  const places = aligned(some.length ? some : curves);
  const x = places[0];
  const [mean, low, high] = [0, 1, 2].map(() => new Float64Array(x.length).fill(NaN));
  for (let i = 0; i < x.length; i++) {
    let [count, sum, squares] = [0, 0, 0];
    for (let j = 1; j < places.length; j++) {
      if (Number.isFinite(places[j][i])) [count, sum] = [count + 1, sum + places[j][i]];
    }
    if (!count) continue;
    mean[i] = sum / count;
    if (count < 2) continue;
    for (let j = 1; j < places.length; j++) {
      if (Number.isFinite(places[j][i])) squares += (places[j][i] - mean[i]) ** 2;
    }
    const deviation = Math.sqrt(squares / (count - 1));
    [low[i], high[i]] = [mean[i] - deviation, mean[i] + deviation];
  }
  const until = x.filter((at) => at <= end).length;
  const part = (y) => ({ x: x.slice(0, until), y: y.slice(0, until) });
  const rest = { x: x.slice(Math.max(until - 1, 0)), y: mean.slice(Math.max(until - 1, 0)) };
  const none = { x: [], y: [] };
  return { mean: part(mean), low: part(low), high: part(high), rest: until < x.length ? rest : none };
}

class Overlay {
  /** zoomed: is called with whether a part of the range is shown. */
  constructor(element, legend, zoomed) {
    [this.element, this.legend, this.zoomed] = [element, legend, zoomed];
    [this.lines, this.range, this.plot] = [[], null, null];
    steerByKeys(element, () => this._shown(), (from, to) => this.zoom(from === null ? null : [from, to]));
  }

  /**
   * lines: [{ number, label, curve, low, high, rest }], each curve { x, y }; low, high and rest, which follows the
   * curve in a faint line, are undefined where a line is no mean.
   * place: says a place on the axis in words.
   */
  draw(lines, { logarithmic, place }) {
    [this.lines, this.logarithmic, this.place] = [lines, logarithmic, place];
    this.plot?.destroy();
    const width = this.element.clientWidth;
    if (!width) return;
    const soft = { stroke: styleOf("--soft"), grid: { stroke: styleOf("--line"), width: 1 }, ticks: { stroke: styleOf("--line"), width: 1 } };
    const [series, bands] = this._series();
    this.plot = new uPlot({
      width,
      height: OVERLAY_HEIGHT,
      legend: { show: false },
      scales: { x: { time: false, range: () => this._shown() }, y: { distr: logarithmic ? 3 : 1 } },
      axes: [{ ...soft, size: 32, incrs: WHOLE, values: (_, all) => all.map((at) => place(at, true)) }, { ...soft, size: 62 }],
      series,
      bands,
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false }, bind: { dblclick: () => () => this.zoom(null) } },
      hooks: {
        setSelect: [(plot) => this._select(plot)],
        setCursor: [(plot) => this._say(plot.cursor.left >= 0 ? plot.posToVal(plot.cursor.left, "x") : null)],
      },
    }, this._data(width), this.element);
    this._nameLines();
  }

  zoom(range) {
    this.range = range;
    this.zoomed(range !== null);
    if (this.plot) this.plot.setData(this._data(this.element.clientWidth));
  }

  _series() {
    const [series, bands] = [[{}], []];
    for (const line of this.lines) {
      const { colour, dashed } = strokeOf(line.number);
      const points = { show: line.curve.x.length < 2, size: 6 };
      if (line.low) {
        series.push({ stroke: colour, width: 1.25, alpha: 0.5, dash: [2, 4], points: { show: false } });
        const edge = { stroke: "transparent", width: 0, points: { show: false } };
        bands.push({ series: [series.length, series.length + 1], fill: colour.replace(")", " / .18)") });
        series.push({ ...edge }, { ...edge });
      }
      series.push({ stroke: colour, width: 1.75, dash: dashed ? [6, 4] : undefined, points });
    }
    return [series, bands];
  }

  _data(width) {
    const [from, to] = this._shown();
    const columns = Math.max(width - 70, 50);
    const thin = (curve) => thinned(curve, from, to, columns, this.logarithmic);
    return aligned(this.lines.flatMap((line) => (line.low ? [line.rest, line.high, line.low, line.curve] : [line.curve]).map(thin)));
  }

  _shown() {
    if (this.range) return this.range;
    let [low, high] = [Infinity, -Infinity];
    for (const { x } of this.lines.flatMap((line) => (line.rest ? [line.curve, line.rest] : [line.curve]))) {
      if (x.length) [low, high] = [Math.min(low, x[0]), Math.max(high, x[x.length - 1])];
    }
    if (low > high) return [0, 1];
    return low === high ? [low - 1, high + 1] : [low, high];
  }

  _select(plot) {
    const { left, width } = plot.select;
    if (width < 3) return;
    const range = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    if (range[1] > range[0]) this.zoom(range);
  }

  _nameLines() {
    const seen = new Set();
    this.values = [];
    this.legend.replaceChildren();
    for (const line of this.lines) {
      if (seen.has(line.number)) continue;
      seen.add(line.number);
      const [item, mark, name, value] = ["li", "span", "span", "span"].map((kind) => document.createElement(kind));
      mark.className = "mark";
      value.className = "number";
      paint(mark, line.number);
      name.textContent = `${line.number} ${line.label}`;
      item.append(mark, name, value);
      this.legend.append(item);
      this.values.push([line, value]);
    }
    this.at = document.createElement("li");
    this.legend.append(this.at);
  }

  /** Says the values of the lines at a place; of none without a place. */
  _say(at) {
    if (!this.at) return;
    this.at.textContent = at === null ? "" : this.place(at, false);
    for (const [line, element] of this.values) {
      const isPast = line.rest?.x.length && at > line.rest.x[0];
      const { x, y } = isPast ? line.rest : line.curve;
      const i = Math.min(firstAtLeast(x, at ?? 0), x.length - 1);
      const near = i > 0 && at - x[i - 1] < x[i] - at ? i - 1 : i;
      element.textContent = at === null || near < 0 ? "" : `${+y[near].toPrecision(5)}${isPast ? ", not of all seeds" : ""}`;
    }
  }
}

/** Gives an element the colour of a line. */
function paint(element, number) {
  const { colour, dashed } = strokeOf(number);
  element.style.borderTopColor = colour;
  element.style.borderTopStyle = dashed ? "dashed" : "solid";
}
