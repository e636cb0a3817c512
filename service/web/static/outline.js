// Where the keys of a YAML or JSON text are; also of one that is being written and not yet valid.
"use strict";

/** @typedef {{path: string[], line: number, start: number, end: number}} Entry a key: its path, line and place */
/** @typedef {{path: string[], at: "key"|"value", start: number, indent: number, flow: boolean}} Place */

class Outline {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
    /** @type {Entry[]} */
    this.entries = [];
    this.flows = [];  // mappings and lists in braces and brackets, with their parts between commas
    this.before = new Map();  // by the offset of a line: the keys that are open before it
    this.lineStarts = [0];
    for (let i = 0; i < text.length; i++) if (text[i] === "\n") this.lineStarts.push(i + 1);
    this.scan();
  }

  /** The number of the line of an offset, counted from 0. */
  lineOf(offset) {
    let low = 0, high = this.lineStarts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.lineStarts[middle] <= offset) low = middle; else high = middle - 1;
    }
    return low;
  }

  /** The entry of a dotted key, or of the nearest key above it; null if the text has neither. */
  find(key) {
    const known = new Map(this.entries.map((entry) => [entry.path.join("."), entry]));
    const parts = key.split(".");
    for (let length = parts.length; length > 0; length--) {
      const found = known.get(parts.slice(0, length).join("."));
      if (found) return found;
    }
    return null;
  }

  /** The keys that a mapping has. */
  keysOf(path) {
    const own = this.entries.filter(({ path: each }) =>
      each.length === path.length + 1 && path.every((part, i) => part === each[i]));
    return own.map(({ path: each }) => each.at(-1));
  }

  /** What a cursor is at: a key of the mapping `path`, or the value of the key `path`. */
  placeOf(offset) {
    const around = this.flows.filter(({ start, end }) => start < offset && offset <= end);
    const flow = around.sort((one, other) => other.start - one.start)[0];
    return flow ? this.placeInFlow(flow, offset) : this.placeInBlock(offset);
  }

  placeInFlow(flow, offset) {
    const part = flow.parts.findLast(({ start }) => start <= offset) ?? flow.parts[0];
    const start = part.start + this.text.slice(part.start, offset).match(/^\s*/)[0].length;
    if (flow.kind === "[") return { path: [...flow.path, String(flow.parts.indexOf(part))], at: "value", start, indent: 0, flow: true };
    if (part.colon !== null && offset > part.colon) return { path: [...flow.path, part.key], at: "value", start: part.colon + 1, indent: 0, flow: true };
    return { path: flow.path, at: "key", start, indent: 0, flow: true };
  }

  placeInBlock(offset) {
    const begin = this.lineStarts[this.lineOf(offset)];
    const line = this.text.slice(begin).split("\n", 1)[0];
    const [, dashes] = line.match(/^(\s*(?:-\s+)*)/);
    const indent = line.trim() ? dashes.length : offset - begin;
    const open = [...(this.before.get(begin) ?? [])];
    const own = this.entries.find(({ start }) => start === begin + dashes.length);
    if (own && offset > own.end) return { path: own.path, at: "value", start: own.end + 1, indent, flow: false };
    if (own) return { path: own.path.slice(0, -1), at: "key", start: own.start, indent, flow: false };
    const isItem = dashes.includes("-");
    closeKeys(open, isItem ? dashes.indexOf("-") : indent, isItem);
    const path = open.at(-1)?.path ?? [];
    return { path: isItem ? [...path, "0"] : path, at: "key", start: begin + indent, indent, flow: false };
  }

  scan() {
    const open = [];  // keys and items whose values are on the lines that follow, from the outside in
    let at = 0;
    while (at < this.text.length) {
      const end = this.text.indexOf("\n", at) < 0 ? this.text.length : this.text.indexOf("\n", at);
      this.before.set(at, [...open]);
      const next = this.scanLine(at, end, open);
      at = next > end ? this.lineStarts[this.lineOf(next - 1) + 1] ?? this.text.length : end + 1;
    }
    this.before.set(at, [...open]);
  }

  /** Reads a line of block style. Returns where what it begins ends: at its own end, or on a later line. */
  scanLine(begin, end, open) {
    const line = this.text.slice(begin, end);
    if (!line.trim() || line.trim().startsWith("#") || line.startsWith("---")) return end;
    let indent = line.match(/^\s*/)[0].length;
    for (let dash; (dash = line.slice(indent).match(/^-(\s+|$)/)); indent += dash[0].length) {
      closeKeys(open, indent, true);
      const list = open.at(-1) ?? { path: [] };
      list.items = (list.items ?? -1) + 1;
      open.push({ indent, item: true, path: [...list.path, String(list.items)] });
    }
    const rest = line.slice(indent);
    if (/^[{[]/.test(rest)) return this.scanFlow(begin + indent, open.at(-1)?.path ?? []);
    const found = rest.match(/^("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'#{}[\],][^:]*?)\s*:(?=\s|$)/);
    if (!found) return end;
    closeKeys(open, indent, false);
    const path = [...(open.at(-1)?.path ?? []), unquoted(found[1])];
    const start = begin + indent;
    this.entries.push({ path, line: this.lineOf(start), start, end: start + found[0].length - 1 });
    open.push({ indent, path });
    const value = rest.slice(found[0].length).trimStart();
    if (/^[{[]/.test(value)) return this.scanFlow(begin + line.length - value.length, path);
    return /^[|>][-+\d]*\s*(#.*)?$/.test(value) ? this.endOfText(end, indent) : end;
  }

  /** Where a block of literal text ends that a line with this indent has begun. */
  endOfText(end, indent) {
    let line = this.lineOf(end) + 1;
    let last = end;
    for (; line < this.lineStarts.length; line++) {
      const text = this.text.slice(this.lineStarts[line]).split("\n", 1)[0];
      if (text.trim() && text.match(/^\s*/)[0].length <= indent) break;
      last = this.lineStarts[line] + text.length;
    }
    return last > end ? last + 1 : end;
  }

  /** Reads what is in braces or brackets. Returns where it ends. */
  scanFlow(begin, path) {
    const open = [];
    const { text } = this;
    let at = begin;
    for (; at < text.length; at++) {
      const char = text[at], top = open.at(-1), part = top?.parts.at(-1);
      if (char === '"' || char === "'") {
        at = endOfString(text, at);
      } else if (char === "#" && /\s/.test(text[at - 1] ?? " ")) {
        at = (text.indexOf("\n", at) + 1 || text.length + 1) - 2;
      } else if (char === "{" || char === "[") {
        const own = !top ? path : [...top.path, top.kind === "[" ? String(top.parts.length - 1) : part.key ?? ""];
        open.push({ kind: char, path: own, start: at, end: text.length, parts: [{ start: at + 1, colon: null, key: null }] });
        this.flows.push(open.at(-1));
      } else if (char === "}" || char === "]") {
        open.pop().end = at;
        if (!open.length) return at + 1;
      } else if (char === "," && top) {
        top.parts.push({ start: at + 1, colon: null, key: null });
      } else if (char === ":" && top?.kind === "{" && part.colon === null && (/["']/.test(text[at - 1]) || /[\s,}\]]/.test(text[at + 1] ?? " "))) {
        const raw = text.slice(part.start, at);
        const start = part.start + raw.match(/^\s*/)[0].length;
        Object.assign(part, { colon: at, key: unquoted(raw.trim()) });
        this.entries.push({ path: [...top.path, part.key], line: this.lineOf(start), start, end: at });
      }
    }
    return at;
  }
}

/** Closes what a line with this indent is not within. A list may be as far in as the key that it belongs to. */
function closeKeys(open, indent, isItem) {
  while (open.length && (open.at(-1).indent > indent || (open.at(-1).indent === indent && (!isItem || open.at(-1).item)))) open.pop();
}

function endOfString(text, begin) {
  for (let at = begin + 1; at < text.length; at++) {
    if (text[at] === "\\" && text[begin] === '"') at++;
    else if (text[at] === text[begin]) return at;
  }
  return text.length;
}

function unquoted(text) {
  return /^(".*"|'.*')$/s.test(text) ? text.slice(1, -1) : text;
}
