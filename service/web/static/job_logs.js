// The log of a rank: lines around the place that is looked at, fetched by byte offset, never the whole file.
"use strict";

(() => {
  const log = document.getElementById("log");
  const none = document.querySelector("#no-log[data-waits]");
  const job = (log ?? none)?.dataset.job;
  if (!job) return;

  /** Calls `news` with what the service says of the job's logs: attempt, ended, sizes by rank, new lines of one. */
  function follow(news, of = "") {
    const end = streamWhileSeen(`live/jobs/${job}/log${of ? `?rank=${of}` : ""}`, {
      log(event) {
        const found = JSON.parse(event.data);
        if (found.ended) end();
        back();
        news(found);
      },
      error: () => away(LOST),
    });
  }

  if (!log) {
    follow(({ sizes }) => { if (sizes.length) location.reload(); });
    return;
  }

  const MOST_LINES = 4000; // in the document; those far from the place that is looked at are dropped
  const NEAR = 900; // pixels from an edge at which the next page is fetched
  const [FAR, MOST_PAGES] = [1 << 18, 8]; // bytes; who follows a log that is further ahead goes to its end at once
  const get = (id) => document.getElementById(id);
  const [rest, status, text, regex, following] = ["log-rest", "log-status", "log-text", "log-regex", "log-follow"].map(get);
  const { attempt, rank } = log.dataset;
  let start = Number(log.dataset.start);
  let end = Number(log.dataset.end);
  let size = Number(log.dataset.size);
  let search = 0; // the number of the latest search: an earlier one gives up

  function query(values) {
    const parts = new URLSearchParams({ attempt, ...values });
    if (rank) parts.set("rank", rank);
    return parts;
  }

  const page = (values) => ask("GET", `data/jobs/${job}/log?${query(values)}`);
  const lines = () => log.querySelectorAll(".line[data-at]");
  const percent = (at) => (size ? Math.floor((100 * at) / size) : 100);

  function say(what, failed = false) {
    status.textContent = what;
    status.classList.toggle("problem", failed);
  }

  // One change of the lines at a time: each begins where the one before has ended.
  let changes = Promise.resolve();
  function change(work) {
    const done = changes.then(work);
    changes = done.catch((error) => say(error.message, true));
    return changes;
  }

  // Lines

  function rowsOf(found) {
    const rows = document.createDocumentFragment();
    for (const { at, text: content } of found) {
      const row = document.createElement("div");
      row.className = "line";
      row.dataset.at = at;
      row.textContent = content;
      rows.append(row);
    }
    return rows;
  }

  function showRest(found) {
    rest.textContent = found.rest;
    rest.hidden = !found.rest;
    size = found.size;
  }

  /** Changes the document above the lines that are looked at, without moving these. */
  function keepingPlace(work) {
    const below = log.scrollHeight - log.scrollTop;
    work();
    log.scrollTop = log.scrollHeight - below;
  }

  function replaceBy(found) {
    for (const row of lines()) row.remove();
    rest.before(rowsOf(found.lines));
    showRest(found);
    [start, end] = [found.start, found.end];
  }

  /** Fetches the lines after the last one; returns whether there were any. */
  async function loadAfter() {
    return append(await page({ after: end }));
  }

  /** Shows the lines that follow the last one; returns whether there are any. */
  function append(found) {
    rest.before(rowsOf(found.lines));
    showRest(found);
    end = found.end;
    const surplus = lines().length - MOST_LINES;
    if (surplus > 0) {
      keepingPlace(() => [...lines()].slice(0, surplus).forEach((row) => row.remove()));
      start = Number(lines()[0].dataset.at);
    }
    return found.lines.length > 0;
  }

  async function loadBefore() {
    const found = await page({ before: start });
    keepingPlace(() => log.prepend(rowsOf(found.lines)));
    start = found.start;
    const surplus = [...lines()].slice(MOST_LINES);
    if (surplus.length) {
      end = Number(surplus[0].dataset.at);
      surplus.forEach((row) => row.remove());
      rest.hidden = true;
    }
  }

  async function toEnd() {
    replaceBy(await page({ before: Number.MAX_SAFE_INTEGER }));
    log.scrollTop = log.scrollHeight;
  }

  async function toTop() {
    replaceBy(await page({ after: 0 }));
    log.scrollTop = 0;
  }

  /** Shows the line to which a byte belongs; returns its row. */
  async function toByte(at) {
    replaceBy(await page({ at }));
    const row = lines()[0];
    if (start > 0) await loadBefore();
    log.scrollTop = (row ?? rest).offsetTop;
    return row ?? rest;
  }

  function isNear() {
    const below = log.scrollHeight - log.scrollTop - log.clientHeight;
    return { top: log.scrollTop < NEAR && start > 0, bottom: below < NEAR && end < size };
  }

  async function fill() {
    if (isNear().top) await loadBefore();
    if (isNear().bottom) await loadAfter();
    showPlace();
  }

  /** The first row that is seen. */
  function firstSeen() {
    const rows = lines();
    let [low, high] = [0, rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rows[middle].offsetTop + rows[middle].offsetHeight <= log.scrollTop) low = middle + 1;
      else high = middle;
    }
    return rows[low];
  }

  const position = get("log-position");
  let moving = false; // by the slider: it stays where it was put
  function showPlace() {
    const isEnd = end >= size - rest.textContent.length && log.scrollHeight - log.scrollTop - log.clientHeight < 5;
    const at = isEnd ? size : Number(firstSeen()?.dataset.at ?? 0);
    position.max = size;
    position.step = Math.max(1, Math.floor(size / 500));
    if (!moving) position.value = at;
    position.setAttribute("aria-valuetext", `${percent(at)} %`);
    get("log-where").textContent = `${percent(at)} % of ${bytes(size)}`;
  }

  function bytes(count) {
    const power = count ? Math.min(Math.floor(Math.log2(count) / 10), 4) : 0;
    return `${(count / 1024 ** power).toFixed(power ? 1 : 0)} ${["bytes", "KiB", "MiB", "GiB", "TiB"][power]}`;
  }

  // Live

  /** brought: the lines that the stream brought, if it did. */
  async function grow(brought) {
    if (brought?.start === end && (following.checked || isNear().bottom)) {
      append(brought);
      if (following.checked) log.scrollTop = log.scrollHeight;
    } else if (following.checked) {
      let pages = size - end > FAR ? 0 : MOST_PAGES;
      while (pages && (await loadAfter())) pages--;
      if (!pages) await toEnd();
      log.scrollTop = log.scrollHeight;
    } else if (isNear().bottom) {
      await loadAfter();
    }
    showPlace();
  }

  function showSizes(sizes) {
    const select = get("log-rank");
    for (const [number, count] of select ? sizes : []) {
      const label = `${number} (${bytes(count)})`;
      const option = select.querySelector(`option[value="${number}"]`);
      if (!option) select.append(new Option(label, number));
      else if (option.textContent !== label) option.textContent = label;
    }
  }

  function news({ attempt: latest, ended, sizes, lines: brought }) {
    if (latest !== Number(attempt)) {
      if (!sizes.length || latest < Number(attempt)) return;
      if (following.checked && log.dataset.latest) location.reload();
      else say(`Attempt ${latest} has begun. Choose it above to see its log.`);
      return;
    }
    showSizes(sizes);
    const own = sizes.find(([number]) => String(number) === rank);
    if (own && own[1] !== size) {
      size = own[1];
      if (status.textContent.startsWith("The log is empty")) say("");
      change(() => grow(brought));
    }
    if (ended) {
      // The last lines first.
      change(async () => {
        following.checked = false;
        following.closest("label").hidden = true;
      });
    }
  }

  function stopFollowing() { following.checked = false; }

  // Search

  const beginOf = (row) => (row === rest ? end : Number(row.dataset.at));
  const endOf = (row) => (row === rest ? size : beginOf(row.nextElementSibling));

  function mark(row) {
    log.querySelector(".hit")?.classList.remove("hit");
    for (const each of log.querySelectorAll("mark")) each.replaceWith(each.textContent);
    row.classList.add("hit");
    const content = row.textContent;
    const at = regex.checked ? -1 : content.toLowerCase().indexOf(text.value.toLowerCase());
    if (at < 0) return;
    const found = document.createElement("mark");
    found.textContent = content.slice(at, at + text.value.length);
    row.replaceChildren(content.slice(0, at), found, content.slice(at + text.value.length));
  }

  async function showHit(at, wrapped) {
    const row = log.querySelector(`.line[data-at="${at}"]`) ?? (await toByte(at));
    mark(row);
    log.scrollTop = row.offsetTop - log.clientHeight / 3;
    say(`Found at ${percent(at)} % of the log${wrapped}.`);
    await fill();
  }

  async function find(forward) {
    const mine = ++search;
    if (!text.value) return;
    stopFollowing();
    const hit = log.querySelector(".hit");
    let at = hit && forward ? endOf(hit) : beginOf(hit ?? firstSeen() ?? rest);
    let wrapped = "";
    get("log-stop").hidden = false;
    try {
      while (mine === search) {
        const side = forward ? { after: at } : { before: at };
        const found = await ask("GET", `data/jobs/${job}/log/search?${query({ text: text.value, regex: regex.checked, ...side })}`);
        if (mine !== search) return;
        if (found.at !== null) return void (await change(() => showHit(found.at, wrapped)));
        if (found.done && wrapped) return void say("No line matches.");
        if (found.done) wrapped = forward ? ", from the top again" : ", from the end again";
        at = !found.done ? found.position : forward ? 0 : found.size;
        if (!found.done) say(`Searching: ${percent(at)} % of the log${wrapped}…`);
      }
    } catch (error) {
      say(error.message, true);
    } finally {
      if (mine === search) get("log-stop").hidden = true;
    }
  }

  // The tools

  get("log-find").addEventListener("submit", (event) => { event.preventDefault(); find(true); });
  get("log-previous").addEventListener("click", () => find(false));
  get("log-stop").addEventListener("click", () => {
    search++;
    get("log-stop").hidden = true;
    say("The search was stopped.");
  });
  for (const each of [text, regex]) each.addEventListener("input", () => log.querySelector(".hit")?.classList.remove("hit"));
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !event.shiftKey) return;
    event.preventDefault();
    find(false);
  });

  const top = () => { stopFollowing(); change(async () => { await toTop(); await fill(); }); };
  const bottom = () => {
    following.checked = !following.closest("label").hidden;
    change(async () => { await toEnd(); showPlace(); });
  };
  get("log-top").addEventListener("click", top);
  get("log-bottom").addEventListener("click", bottom);
  following.addEventListener("change", () => { if (following.checked) change(() => grow()); });
  get("log-wrap").addEventListener("change", (event) => log.classList.toggle("unwrapped", !event.target.checked));

  let timer = 0;
  position.addEventListener("input", () => {
    moving = true;
    stopFollowing();
    clearTimeout(timer);
    timer = setTimeout(() => change(async () => {
      const at = Number(position.value);
      await (at >= size - Number(position.step) ? toEnd() : toByte(at));
      await fill();
      moving = false;
    }), 120);
  });

  // Whoever goes up by hand does not want to be taken down again.
  log.addEventListener("wheel", (event) => { if (event.deltaY < 0) stopFollowing(); }, { passive: true });
  for (const name of ["touchmove", "pointerdown"]) log.addEventListener(name, stopFollowing, { passive: true });
  log.addEventListener("keydown", (event) => {
    if (event.key === "Home" || event.key === "End") {
      event.preventDefault();
      (event.key === "Home" ? top : bottom)();
    } else if (["ArrowUp", "PageUp"].includes(event.key)) stopFollowing();
  });
  let waiting = false;
  log.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; showPlace(); const near = isNear(); if (near.top || near.bottom) change(fill); });
  }, { passive: true });

  const choice = get("log-choice");
  choice.querySelector("button").hidden = true;
  for (const select of choice.querySelectorAll("select")) select.addEventListener("change", () => {
    // Another rank of the latest attempt: also of one that has not begun yet.
    if (log.dataset.latest && select.name === "rank") get("log-attempt").disabled = true;
    choice.requestSubmit();
  });
  for (const id of ["log-tools", "log-place"]) get(id).hidden = false;
  log.scrollTop = log.scrollHeight;
  change(fill);
  if (!log.dataset.ended) follow(news, rank);
})();
