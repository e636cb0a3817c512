// How charts are steered: what a key does to the range that is shown, and the choices kept in the URL.
"use strict";

const KEYS = {
  ArrowLeft: [1, -0.25], ArrowRight: [1, 0.25], "+": [0.5, 0], "=": [0.5, 0], "-": [2, 0], _: [2, 0], 0: null,
};
const STEERING = "The arrow keys move it, plus and minus zoom, 0 shows the whole range.";

/** A range zoomed by a factor about its middle, and moved by a part of its length. */
function steered([from, to], factor, by) {
  const [middle, half] = [(from + to) / 2 + by * (to - from), ((to - from) / 2) * factor];
  return [middle - half, middle + half];
}

/** Steers by keys what an element shows. range: returns it; zoom: is given another one, or nulls for the whole. */
function steerByKeys(element, range, zoom) {
  element.tabIndex = 0;
  element.addEventListener("keydown", (event) => {
    if (!Object.hasOwn(KEYS, event.key) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const change = KEYS[event.key];
    zoom(...(change ? steered(range(), ...change) : [null, null]));
  });
}

let writing = 0;
let unwritten = {};
/** Keeps choices in the URL, so that it can be reloaded and sent: { name: text, or texts, or null for none }. */
function keepInUrl(choices) {
  unwritten = { ...unwritten, ...choices };
  clearTimeout(writing);
  // Browsers refuse more than some of these in a second, as dragging would make.
  writing = setTimeout(() => {
    const url = new URL(location.href);
    for (const [name, texts] of Object.entries(unwritten)) {
      url.searchParams.delete(name);
      for (const text of [texts].flat()) if (text !== null) url.searchParams.append(name, text);
    }
    unwritten = {};
    history.replaceState(history.state, "", url);
  }, 200);
}
