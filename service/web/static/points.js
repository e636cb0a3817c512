// The points of a job's metrics: fetched as lines, kept by metric, thinned for drawing. No elements here.
"use strict";

/** The values of one metric, by step. Of points with the same step the last one counts. */
class Series {
  constructor(name) {
    this.name = name;
    this.version = 0;
    this.length = 0;
    this._room(1024);
    this._sorted = true;
    this._made = new Map();
  }

  add(time, step, value) {
    const last = this.length - 1;
    if (last >= 0 && step === this.steps[last] && this._sorted) {
      [this.times[last], this.values[last]] = [time, value];
    } else {
      if (this.length === this.steps.length) this._room(2 * this.length);
      if (last >= 0 && step < this.steps[last]) this._sorted = false;
      this.times[this.length] = time;
      this.steps[this.length] = step;
      this.values[this.length++] = value;
    }
    this.version++;
  }

  /** Sorts by step, and drops what a resumed attempt has repeated. */
  settle() {
    if (this._sorted) return;
    const order = Array.from({ length: this.length }, (_, i) => i);
    order.sort((a, b) => this.steps[a] - this.steps[b] || a - b);
    const kept = order.filter((at, i) => i + 1 === order.length || this.steps[at] !== this.steps[order[i + 1]]);
    for (const name of ["times", "steps", "values"]) {
      const all = this[name];
      this[name] = Float64Array.from({ length: all.length }, (_, i) => (i < kept.length ? all[kept[i]] : 0));
    }
    this.length = kept.length;
    this._sorted = true;
  }

  /**
   * The points along an axis, in its order: { x, y }.
   * axis: "step", "epoch" (steps / scale) or "time" (seconds since `scale`, in milliseconds).
   */
  along(axis, scale) {
    this.settle();
    return this._once(`${axis} ${scale}`, () => {
      const y = this.values.subarray(0, this.length);
      if (axis === "step") return { x: this.steps.subarray(0, this.length), y };
      if (axis === "epoch") return { x: this.steps.subarray(0, this.length).map((step) => step / scale), y };
      const x = this.times.subarray(0, this.length).map((time) => (time - scale) / 1000);
      if (x.every((at, i) => i === 0 || at >= x[i - 1])) return { x, y };
      const order = Array.from(x.keys()).sort((a, b) => x[a] - x[b]);
      return { x: Float64Array.from(order, (i) => x[i]), y: Float64Array.from(order, (i) => y[i]) };
    });
  }

  /** The same, smoothed: see `smoothed`. */
  smoothedAlong(axis, scale, weight) {
    const { x, y } = this.along(axis, scale);
    return weight ? { x, y: this._once(`${axis} ${scale} ${weight}`, () => smoothed(y, weight)) } : { x, y };
  }

  _once(key, make) {
    const known = this._made.get(key);
    if (known?.version === this.version) return known.made;
    if (this._made.size > 8) this._made.clear();
    const made = make();
    this._made.set(key, { version: this.version, made });
    return made;
  }

  _room(size) {
    for (const name of ["times", "steps", "values"]) {
      const larger = new Float64Array(size);
      if (this[name]) larger.set(this[name]);
      this[name] = larger;
    }
  }
}

/** All metrics of a job, from lines `time step value name`. */
class Points {
  constructor() {
    this.clear();
  }

  clear() {
    this.series = new Map();
    this.began = Infinity;
  }

  /** Adds complete lines; skips what is none. Returns whether there was a new metric. */
  read(text) {
    const before = this.series.size;
    let start = 0;
    for (let end = text.indexOf("\n"); start < text.length; end = text.indexOf("\n", start)) {
      const stop = end < 0 ? text.length : end;
      const first = text.indexOf(" ", start);
      const second = text.indexOf(" ", first + 1);
      const third = text.indexOf(" ", second + 1);
      if (first > 0 && second > first && third > second && third < stop) {
        const time = +text.slice(start, first);
        const step = +text.slice(first + 1, second);
        if (Number.isFinite(time) && Number.isFinite(step)) {
          this.of(text.slice(third + 1, stop)).add(time, step, numberOf(text.slice(second + 1, third)));
          if (time < this.began) this.began = time;
        }
      }
      start = stop + 1;
    }
    return this.series.size > before;
  }

  of(name) {
    let found = this.series.get(name);
    if (!found) this.series.set(name, (found = new Series(name)));
    return found;
  }
}

/** A float as Python writes it. */
function numberOf(text) {
  if (text === "inf") return Infinity;
  return text === "-inf" ? -Infinity : +text;
}

/** An exponential moving average, free of bias at the beginning; values that are not finite stay as they are. */
function smoothed(values, weight) {
  const made = new Float64Array(values.length);
  let sum = 0;
  let weights = 0;
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i])) {
      made[i] = values[i];
      continue;
    }
    sum = weight * sum + (1 - weight) * values[i];
    weights = weight * weights + 1 - weight;
    made[i] = sum / weights;
  }
  return made;
}

/** The first index in sorted numbers whose number is at least `wanted`. */
function firstAtLeast(numbers, wanted) {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The points from x = from to x = to, and one more on each side, with at most four for each of `columns` parts
 * of the range: the first, the lowest, the highest and the last one, so that no extreme is lost. A value that
 * is not finite, or not above 0 if `logarithmic`, is null: a gap.
 */
function thinned({ x, y }, from, to, columns, logarithmic = false) {
  const begin = Math.max(firstAtLeast(x, from) - 1, 0);
  const end = Math.min(firstAtLeast(x, to) + 2, x.length);
  const drawn = (i) => (Number.isFinite(y[i]) && !(logarithmic && y[i] <= 0) ? y[i] : null);
  const made = { x: [], y: [] };
  const take = (i) => {
    made.x.push(x[i]);
    made.y.push(drawn(i));
  };
  if (end - begin <= 4 * columns) {
    for (let i = begin; i < end; i++) take(i);
    return made;
  }
  const width = (to - from) / columns;
  for (let i = begin; i < end; ) {
    const column = Math.floor((x[i] - from) / width);
    let [lowest, highest, gap, last] = [-1, -1, -1, i];
    for (let j = i; j < end && Math.floor((x[j] - from) / width) === column; j++) {
      last = j;
      const value = y[j];
      if (!Number.isFinite(value) || (logarithmic && value <= 0)) gap = gap < 0 ? j : gap;
      else {
        if (lowest < 0 || value < y[lowest]) lowest = j;
        if (highest < 0 || value > y[highest]) highest = j;
      }
    }
    const chosen = lowest < 0 ? [gap] : [i, lowest, highest, last];
    for (const at of [...new Set(chosen)].sort((a, b) => a - b)) take(at);
    i = last + 1;
  }
  return made;
}

/** Puts curves over one axis: [x, y, y, …], where undefined means that a curve has no point there. */
function aligned(curves) {
  if (curves.length === 1) return [curves[0].x, curves[0].y];
  const all = new Float64Array(curves.reduce((sum, curve) => sum + curve.x.length, 0));
  let filled = 0;
  for (const curve of curves) {
    all.set(curve.x, filled);
    filled += curve.x.length;
  }
  all.sort();
  const xs = Array.from(all.filter((value, i) => i === 0 || value !== all[i - 1]));
  const ys = curves.map((curve) => {
    const row = new Array(xs.length);
    let at = 0;
    for (let i = 0; i < curve.x.length; i++) {
      while (xs[at] !== curve.x[i]) at++;
      row[at] = curve.y[i];
    }
    return row;
  });
  return [xs, ...ys];
}

/** Fetches the points of a job into `points`, from where it was. tell: is told what takes long, and "" after. */
class PointReader {
  constructor(job, kind, points, tell) {
    [this.job, this.kind, this.points, this.tell] = [job, kind, points, tell];
    this.position = "";
    this._busy = null;
  }

  /** Resolves when all points that there are have been read; throws an Error as `ask` does. */
  catchUp() {
    this._busy ??= this._catchUp().finally(() => { this._busy = null; });
    return this._busy;
  }

  /** Adds lines that follow a position; returns whether the reader is at that position. */
  follow(before, after, lines) {
    if (this._busy || before !== this.position) return false;
    this.points.read(lines);
    this.position = after;
    return true;
  }

  async _catchUp() {
    for (let more = true; more; ) {
      const query = new URLSearchParams({ after: this.position, kind: this.kind });
      const answer = await this._get(`data/jobs/${this.job}/points?${query}`);
      const says = (name) => answer.headers.get(`Points-${name}`) === "yes";
      if (says("Restarted")) this.points.clear();
      const first = !this.position || says("Restarted");
      if (first && says("Earlier")) await this._readHistory();
      this.points.read(await answer.text());
      this.position = answer.headers.get("Points-Position");
      more = says("More");
    }
    this.tell("");
  }

  async _readHistory() {
    const slow = setTimeout(() => this.tell("MLflow is asked for the whole history. That can take a minute."), 500);
    try {
      const text = await (await this._get(`data/jobs/${this.job}/history?kind=${this.kind}`)).text();
      this.points.clear();
      this.points.read(text);
    } finally {
      clearTimeout(slow);
    }
  }

  async _get(path) {
    let answer;
    try {
      answer = await fetch(address(path));
    } catch {
      throw new Error("The service does not answer.");
    }
    if (answer.ok) return answer;
    const problem = await answer.json().catch(() => ({}));
    throw failure(problem, answer.status);
  }
}
