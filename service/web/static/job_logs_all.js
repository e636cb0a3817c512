// The logs of all ranks of an attempt in one view: lines in the order in which they come.
"use strict";

(() => {
  const log = document.getElementById("log-all");
  const MOST_LINES = 4000;
  const ESCAPES = /\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;
  const following = document.getElementById("log-follow");
  const wanted = () => document.getElementById("log-only").value.toLowerCase();
  let [rank, queue, waiting, isSeenAgain] = ["", [], false, false];

  function rowOf([from, text]) {
    const [row, mark] = [document.createElement("div"), document.createElement("span")];
    row.className = "line";
    mark.className = "log-of";
    mark.textContent = `rank ${from} `;
    row.append(mark, text);
    row.hidden = !row.textContent.toLowerCase().includes(wanted());
    return row;
  }

  function show() {
    waiting = false;
    log.append(...queue.slice(-MOST_LINES).map(rowOf));
    queue = [];
    while (log.childElementCount > MOST_LINES) log.firstElementChild.remove();
    if (following.checked) log.scrollTop = log.scrollHeight;
  }

  const path = `v1/jobs/${log.dataset.job}/logs?follow=true&attempt=${log.dataset.attempt}&tail=${log.dataset.tail}`;
  const end = streamWhileSeen(path, {
    // Opened again, it begins again with the last lines.
    open() {
      if (isSeenAgain) log.replaceChildren();
      isSeenAgain = false;
      back();
    },
    source(event) { rank = JSON.parse(event.data).rank; },
    log(event) {
      const shown = event.data.slice(event.data.lastIndexOf("\n") + 1); // of a progress bar its last state
      queue.push([rank, shown.replace(ESCAPES, "")]);
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(show);
    },
    end: () => end(),
    error(event) { if (event.target.readyState !== EventSource.CLOSED) away(LOST); },
  });
  document.addEventListener("visibilitychange", () => { isSeenAgain = !document.hidden; });

  document.getElementById("log-only").addEventListener("input", () => {
    for (const row of log.children) row.hidden = !row.textContent.toLowerCase().includes(wanted());
    if (following.checked) log.scrollTop = log.scrollHeight;
  });
  log.addEventListener("wheel", (event) => { if (event.deltaY < 0) following.checked = false; }, { passive: true });
  for (const name of ["touchmove", "pointerdown"]) log.addEventListener(name, () => { following.checked = false; }, { passive: true });
  log.addEventListener("keydown", (event) => { if (["ArrowUp", "PageUp", "Home"].includes(event.key)) following.checked = false; });
  following.addEventListener("change", () => { if (following.checked) log.scrollTop = log.scrollHeight; });
  const choice = document.getElementById("log-choice");
  choice.querySelector("button").hidden = true;
  for (const select of choice.querySelectorAll("select")) select.addEventListener("change", () => choice.requestSubmit());
})();
