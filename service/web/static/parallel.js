// Parallel coordinates: an axis for each swept key and one for a metric, and a line for each point.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const PLOT = { height: 300, top: 40, bottom: 24, side: 60, apart: 120, brush: 30, ticks: 5 };
const LOGARITHMIC_FROM = 50;

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function shortened(text, most) {
  return text.length > most ? `…${text.slice(1 - most)}` : text;
}

function tickText(value) {
  return typeof value === "number" ? String(+value.toPrecision(4)) : String(value);
}

/** A value as a text on an axis of names. */
function named(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

/**
 * An axis over values: { place(value) from 0 (bottom) to 1 (top), or null; ticks: [[place, text]…] }.
 * Numbers are in proportion, or by their logarithm if they differ much; everything else is in even distances.
 */
function axisOver(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  if (known.length && known.every((value) => typeof value === "number")) return numericAxis(known);
  const names = [...new Set(known.map(named))];
  const at = new Map(names.map((name, i) => [name, names.length > 1 ? i / (names.length - 1) : 0.5]));
  return {
    place: (value) => (value === null || value === undefined ? null : at.get(named(value))),
    ticks: names.map((name) => [at.get(name), name]),
  };
}

function numericAxis(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const logarithmic = low > 0 && high / low >= LOGARITHMIC_FROM;
  const scale = logarithmic ? Math.log : (value) => value;
  const span = scale(high) - scale(low);
  const place = (value) => (typeof value !== "number" ? null : span ? (scale(value) - scale(low)) / span : 0.5);
  const distinct = [...new Set(values)].sort((a, b) => a - b);
  if (distinct.length <= PLOT.ticks) return { place, ticks: distinct.map((value) => [place(value), tickText(value)]) };
  const parts = Array.from({ length: PLOT.ticks }, (_, i) => i / (PLOT.ticks - 1));
  const value = (part) => (logarithmic ? Math.exp(scale(low) + part * span) : low + part * span);
  return { place, ticks: parts.map((part) => [part, tickText(value(part))]) };
}

/** A colour between blue and orange, readable on light and on dark; grey for what has no value. */
function lineColour(share) {
  if (share === null) return "#8a8f98";
  const [from, to] = [[58, 110, 210], [225, 118, 20]];
  return `rgb(${from.map((part, i) => Math.round(part + share * (to[i] - part))).join(" ")})`;
}

class ParallelCoordinates {
  /** chosen: is called after each change of the ranges that are chosen. */
  constructor(element, chosen) {
    [this.element, this.chosen] = [element, chosen];
    this.ranges = new Map(); // by name of an axis: [low, high], from 0 to 1
    this.axes = [];
  }

  /** points: [{ id, title, values: { name: value } }]. names: the axes [[name, title]…]; the last gives the colours. */
  draw(points, names) {
    this.points = points;
    this.axes = names.map(([name, title]) => ({ name, title, ...axisOver(points.map((point) => point.values[name])) }));
    for (const name of this.ranges.keys()) if (!names.some(([each]) => each === name)) this.ranges.delete(name);
    const room = this.element.parentElement.clientWidth;
    this.width = Math.max(room, (names.length - 1) * PLOT.apart + 2 * PLOT.side);
    this.element.setAttribute("viewBox", `0 0 ${this.width} ${PLOT.height}`);
    this.element.setAttribute("width", this.width);
    this.element.setAttribute("height", PLOT.height);
    this.lines = new Map(points.map((point) => [point.id, this._line(point)]));
    this.element.replaceChildren(...this.lines.values(), ...this.axes.map((axis, i) => this._axis(axis, i)));
    this._mark();
  }

  /** Returns whether the point is in all chosen ranges. */
  includes(point) {
    return this.axes.every(({ name, place }) => {
      const range = this.ranges.get(name);
      const at = range && place(point.values[name]);
      return !range || (at !== null && at >= range[0] && at <= range[1]);
    });
  }

  clear() {
    this.ranges.clear();
    this._changed();
  }

  highlight(id) {
    for (const [each, line] of this.lines) line.classList.toggle("pointed", each === id);
  }

  _x(i) {
    return this.axes.length > 1 ? PLOT.side + (i * (this.width - 2 * PLOT.side)) / (this.axes.length - 1) : this.width / 2;
  }

  _y(place) {
    return PLOT.top + (1 - place) * (PLOT.height - PLOT.top - PLOT.bottom);
  }

  _line(point) {
    const steps = [];
    let down = false;
    this.axes.forEach((axis, i) => {
      const place = axis.place(point.values[axis.name]);
      if (place !== null) steps.push(`${down ? "L" : "M"}${this._x(i).toFixed(1)} ${this._y(place).toFixed(1)}`);
      down = place !== null;
    });
    const last = this.axes[this.axes.length - 1];
    const share = last.place(point.values[last.name]);
    const line = svg("path", { d: steps.join(""), fill: "none", stroke: lineColour(share), class: "line" });
    line.append(svg("title", {}, point.title));
    return line;
  }

  _axis(axis, i) {
    const group = svg("g", { class: "axis" });
    const x = this._x(i);
    const anchor = i === 0 ? "start" : i === this.axes.length - 1 ? "end" : "middle";
    const at = { start: x - PLOT.side + 8, middle: x, end: x + PLOT.side - 8 }[anchor];
    const heading = svg("text", { x: at, y: 16, "text-anchor": anchor, class: "heading" }, shortened(axis.title, 18));
    heading.append(svg("title", {}, axis.name));
    group.append(heading, svg("line", { x1: x, x2: x, y1: this._y(0), y2: this._y(1) }));
    for (const [place, text] of axis.ticks.slice(0, 40)) {
      const label = svg("text", { x: x - 6, y: this._y(place) + 4, "text-anchor": "end" }, shortened(text, 16));
      label.append(svg("title", {}, text));
      group.append(label);
    }
    const range = this.ranges.get(axis.name);
    if (range) group.append(svg("rect", { x: x - 8, width: 16, y: this._y(range[1]), height: Math.max(this._y(range[0]) - this._y(range[1]), 2), class: "range" }));
    const hit = svg("rect", { x: x - PLOT.brush / 2, width: PLOT.brush, y: PLOT.top - 8, height: PLOT.height - PLOT.top - PLOT.bottom + 16, class: "brush" });
    hit.dataset.axis = axis.name;
    hit.addEventListener("pointerdown", (event) => this._brush(event, axis.name));
    group.append(hit);
    return group;
  }

  /** Follows the pointer along an axis: what it covers is chosen; a click without a way chooses all again. */
  _brush(down, name) {
    down.preventDefault();
    const top = this.element.getBoundingClientRect().top;
    const place = (event) => {
      const share = 1 - (event.clientY - top - PLOT.top) / (PLOT.height - PLOT.top - PLOT.bottom);
      return Math.min(Math.max(share, 0), 1);
    };
    const from = place(down);
    const move = (event) => {
      const to = place(event);
      if (Math.abs(to - from) < 0.015) this.ranges.delete(name);
      else this.ranges.set(name, [Math.min(from, to), Math.max(from, to)]);
      this._changed();
    };
    const up = (event) => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", up);
      removeEventListener("pointercancel", up);
      if (event.type === "pointerup") move(event);
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", up);
    addEventListener("pointercancel", up);
  }

  _changed() {
    const axes = [...this.element.querySelectorAll(".axis")];
    this.axes.forEach((axis, i) => axes[i].replaceWith(this._axis(axis, i)));
    this._mark();
    this.chosen();
  }

  _mark() {
    for (const point of this.points) this.lines.get(point.id).classList.toggle("faint", !this.includes(point));
  }
}
