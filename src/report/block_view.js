// The block view: what is shown of which step, and how one gets there. `#step=12&request=r3&run=0` opens a page there.
"use strict";

const byId = (id) => document.getElementById(`block-view${id}`);

/** An element with text, never with markup: names come from files. */
function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

/// Rows of a step that the page lists.
const MOST_ROWS = 512;

/** Makes a table's lines say what they should; what did not change is not touched. */
function fillRows(body, lines) {
  while (body.rows.length > lines.length) body.deleteRow(-1);
  lines.forEach((line, i) => {
    const row = body.rows[i] ?? body.insertRow();
    if (row.className !== line.className) row.className = line.className;
    if (row.dataset.request !== String(line.request)) row.dataset.request = line.request;
    line.cells.forEach((cell, j) => {
      const place = row.cells[j] ?? row.insertCell(), text = String(cell);
      if (place.textContent !== text) place.textContent = text;
    });
  });
}

const plural = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

class BlockView {
  constructor(trace, note) {
    this.trace = trace;
    this.index = 0;
    this.request = null;
    this.block = null;
    this.timer = null;
    this.picture = new PoolPicture(byId("-pool"));
    byId("-note").textContent = note;
    this.slider = byId("-slider");
    this.slider.max = trace.steps.length - 1;
    this.number = byId("-number");
  }

  get step() {
    return this.trace.steps[this.index];
  }

  /** Shows a step by its place; the address follows unless it was what asked. */
  show(index, keepAddress = false) {
    const began = performance.now();
    this.index = Math.max(0, Math.min(this.trace.steps.length - 1, index));
    this.trace.goTo(this.index);
    this.look = this.trace.look();
    this.writes = this.trace.rows.flatMap((row) => [...this.trace.writes(row)]);
    this.slider.value = this.index;
    this.number.value = this.step.s;
    this.showStatus();
    this.showRows();
    this.showRequest();
    this.drawPool();
    this.showBlock();
    if (!keepAddress) this.writeAddress();
    this.took = performance.now() - began;
  }

  /** Shows a step by its number: that one, or the last before it. */
  showNumber(number, keepAddress = false) {
    let low = 0, high = this.trace.steps.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.trace.steps[middle].s <= number) low = middle;
      else high = middle - 1;
    }
    this.show(low, keepAddress);
  }

  showStatus() {
    const { used, cached } = this.look, [usedStated, cachedStated] = this.step.q;
    const numBlocks = this.trace.numBlocks;
    let text = `step ${this.step.s}: used ${usedStated}, free ${numBlocks - usedStated}, cached ${cachedStated}`;
    if (used < usedStated) text += ` (${plural(usedStated - used, "block")} reserved for drafts, not named by the trace)`;
    if (used > usedStated || cached !== cachedStated) text += ` (drawn: used ${used}, cached ${cached})`;
    const drafts = sum(this.trace.rows, "drafts"), accepted = sum(this.trace.rows, "accepted");
    text += ` · ${this.step.g ? "graph" : "eager"}, ${plural(this.trace.rows.length, "row")}, ` +
      `${plural(this.writes.length, "slot")} written, ${sum(this.trace.rows, "emitted")} tokens emitted`;
    if (drafts) text += `, ${accepted} of ${plural(drafts, "draft")} accepted`;
    text += ` · ${(this.step.t.reduce((a, b) => a + b, 0) / 1000).toFixed(3)} ms`;
    byId("-status").textContent = text;
    Object.assign(byId("").dataset, {
      step: this.step.s, used, cached, free: numBlocks - used, drafts, accepted,
      slots: this.trace.slotsWritten().slice(0, 4096).join(","),
      published: (this.step.p ?? []).map((block) => this.trace.ids[block]).join(","),
    });
  }

  showRows() {
    const names = this.trace.names, ends = new Map();
    eachOf(this.step.f, 2, (request, reason) => ends.set(request, REASONS[reason]));
    const lines = this.trace.rows.slice(0, MOST_ROWS).map((row) => ({
      request: row.request,
      className: row.request === this.chosen() ? "chosen" : "",
      cells: [names[row.request], KINDS[row.kind], row.computed, row.queries - row.drafts, row.drafts || "",
        row.drafts ? row.accepted : "", row.emitted || "", row.length, ends.get(row.request) ?? ""],
    }));
    for (const [list, what] of [[this.step.x, "preempted"], [this.step.b, "aborted"]]) {
      for (const request of list ?? []) {
        lines.push({ request, className: "gone", cells: [names[request], what, "", "", "", "", "", "", ""] });
      }
    }
    fillRows(byId("-rows").tBodies[0], lines);
    const more = this.trace.rows.length - MOST_ROWS;
    byId("-more").textContent = more > 0 ? `and ${plural(more, "row")} more` : "";
  }

  /** The request that is looked at: the one picked, or the step's first. */
  chosen() {
    return this.request ?? this.trace.rows[0]?.request ?? null;
  }

  /** Its table: after the step, or, if it ended with it, as the step used it. */
  tableOf(request) {
    const row = this.trace.rows.find((row) => row.request === request);
    const live = this.trace.live.get(request);
    // Blocks behind the window were given back: -1 stands in their places.
    const behind = (sequence) => sequence.first(this.trace.window, this.trace.blockSize);
    if (live) return { blocks: live.blocks().fill(-1, 0, behind(live)), computed: live.computed, row };
    if (row) return { blocks: row.table.slice(0, row.length), computed: row.computed + row.queries - row.drafts + row.accepted, row };
    return null;
  }

  showRequest() {
    const request = this.chosen(), title = byId("-request"), view = byId("");
    this.table = request === null ? null : this.tableOf(request);
    const blocks = this.table?.blocks ?? [];
    view.dataset.request = request === null ? "" : this.trace.names[request];
    view.dataset.table = blocks.map((block) => this.trace.ids[block] ?? -1).join(",");
    view.dataset.computed = this.table?.computed ?? "";
    if (request === null) title.textContent = "no request in this step";
    else if (!this.table) title.textContent = `request ${this.trace.names[request]}: holds no blocks now`;
    else {
      const last = this.table.computed % this.trace.blockSize || (this.table.computed ? this.trace.blockSize : 0);
      title.textContent = `request ${this.trace.names[request]}: ${plural(this.table.computed, "token")} in ` +
        `${plural(blocks.filter((block) => block in this.trace.ids).length, "block")}, ${last} of ${this.trace.blockSize} slots in the last one with tokens`;
    }
    const writes = this.table?.row ? [...this.trace.writes(this.table.row)] : [];
    drawTable(byId("-table"), this.trace, this.look, blocks, this.table?.computed ?? 0, writes);
  }

  drawPool() {
    const blocks = (this.table?.blocks ?? []).filter((block) => block in this.trace.ids);
    this.picture.draw(this.trace, this.look, this.writes, blocks, this.block);
  }

  showBlock() {
    const card = byId("-block"), block = this.block;
    if (block === null) {
      card.replaceChildren(make("p", "Point at a block, or click one to keep it.", "note"));
      return;
    }
    const trace = this.trace, size = trace.blockSize;
    const parts = [make("h4", `block ${trace.ids[block]}: ${STATE_NAMES[this.look.states[block]]}`)];
    parts.push(make("p", `${this.look.fills[block]} of ${size} slots filled${trace.published[block] ? ", published" : ""}`));
    const list = make("ul");
    for (const { request, place, computed } of trace.holders(block).slice(0, 40)) {
      const last = Math.min(computed, (place + 1) * size) - 1;
      const what = last < place * size ? "nothing yet" : `positions ${place * size} to ${last}`;
      list.append(make("li", `${trace.names[request]}: entry ${place}, ${what}`));
    }
    if (list.children.length) parts.push(make("p", "held by"), list);
    const written = this.writes.filter((write) => write.block === block);
    for (const fate of ["own", "accepted", "rejected"]) {
      const at = written.filter((write) => write.fate === fate).map((write) => write.position);
      const name = fate === "own" ? "written in this step" : `drafts ${fate}`;
      if (at.length) parts.push(make("p", `${name}: positions ${at.join(", ")}`));
    }
    const copies = [];
    eachOf(this.step.k, 2, (from, to) => {
      if (to === block) copies.push(`copied from block ${trace.ids[from]}`);
      if (from === block) copies.push(`copied to block ${trace.ids[to]}`);
    });
    if ((this.step.p ?? []).includes(block)) copies.push("published to the prefix cache by this step");
    for (const text of copies) parts.push(make("p", text));
    card.replaceChildren(...parts);
  }

  writeAddress() {
    const picked = this.request === null ? "" : `&request=${encodeURIComponent(this.trace.names[this.request])}`;
    try {
      const run = Number(byId("").dataset.run) ? `run=${byId("").dataset.run}&` : "";
      history.replaceState(null, "", `#${run}step=${this.step.s}${picked}`);
    } catch {
      // Browsers limit how often, while one drags; the next step sets it.
    }
  }

  readAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (asked.has("request")) {
      const found = this.trace.names.indexOf(asked.get("request"));
      this.request = found < 0 ? null : found;
    }
    const block = this.trace.place.get(Number(asked.get("block") ?? NaN));
    if (block !== undefined) this.block = block;
    this.showNumber(Number(asked.get("step") ?? this.trace.steps[0].s), true);
  }

  play() {
    if (this.timer) {
      clearInterval(this.timer);
      this.timer = null;
    } else {
      this.timer = setInterval(() => {
        if (this.index + 1 >= this.trace.steps.length) this.play();
        else this.show(this.index + 1);
      }, 120);
    }
    document.querySelector("[data-go=play]").textContent = this.timer ? "⏸ pause" : "▶ play";
  }

  go(where) {
    if (where === "play") return this.play();
    const ends = { first: 0, last: this.trace.steps.length - 1, back: this.index - 1, forward: this.index + 1 };
    this.show(ends[where]);
  }

  pick(request) {
    this.request = this.request === request ? null : request;
    this.show(this.index);
  }

  listen() {
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.number.addEventListener("change", () => this.showNumber(Number(this.number.value)));
    byId("").addEventListener("click", (event) => {
      const where = event.target.closest("[data-go]")?.dataset.go;
      if (where) this.go(where);
      const line = event.target.closest("tr[data-request]");
      if (line) this.pick(Number(line.dataset.request));
    });
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("hashchange", () => this.readAddress());
    window.addEventListener("resize", () => this.show(this.index, true));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show(this.index, true));
    this.listenToPool(byId("-pool"));
  }

  listenToPool(canvas) {
    let kept = false;
    const point = (block) => {
      this.block = block;
      this.drawPool();
      this.showBlock();
    };
    canvas.addEventListener("mousemove", (event) => kept || point(this.picture.blockAt(event)));
    canvas.addEventListener("mouseleave", () => kept || point(null));
    canvas.addEventListener("click", (event) => {
      const block = this.picture.blockAt(event);
      kept = block !== null && !(kept && block === this.block);
      point(block);
    });
  }

  key(event) {
    if (event.target.matches("input[type=number], select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: "back", ArrowRight: "forward", Home: "first", End: "last", " ": "play" };
    const where = steps[event.key];
    if (!where) return;
    event.preventDefault();
    this.go(where);
  }

  /** How long steps here and there take to show, drawing included; for the test that asks for it by `#bench`. */
  measure() {
    const times = [];
    let seed = 1;
    for (let i = 0; i < 200; i++) {
      seed = (seed * 48271) % 2147483647;
      this.show(seed % this.trace.steps.length, true);
      times.push(this.took);
    }
    times.sort((a, b) => a - b);
    Object.assign(byId("").dataset, { scrubMedianMs: times[100].toFixed(2), scrubMaxMs: times[199].toFixed(2) });
  }
}

const sum = (rows, field) => rows.reduce((total, row) => total + row[field], 0);

function drawLegend() {
  const legend = byId("-legend");
  const entry = (className, text) => {
    const span = make("span");
    span.append(make("i", undefined, className), text);
    legend.append(span);
  };
  for (const name of STATE_NAMES) entry(`state-${name}`, name);
  entry("fate-own", "written in this step");
  entry("fate-accepted", "draft, accepted");
  entry("fate-rejected", "draft, rejected");
  entry("mark", "the request's table");
}

/** The run that the address asks for; with several, a list of them. */
function chooseRun() {
  const runs = [...document.querySelectorAll("script.steps")];
  const asked = Number(new URLSearchParams(location.hash.slice(1)).get("run") ?? 0);
  const chosen = runs[asked] ? asked : 0;
  if (runs.length > 1) {
    const label = byId("-run"), select = label.querySelector("select");
    label.hidden = false;
    runs.forEach((run, i) => select.append(new Option(run.dataset.run, i, i === chosen, i === chosen)));
    select.addEventListener("change", () => {
      location.hash = `run=${select.value}`;
      location.reload();
    });
  }
  byId("").dataset.run = chosen;
  return runs[chosen];
}

async function openBlockView() {
  const element = chooseRun();
  if (!element) return;
  byId("").hidden = false;
  try {
    const began = performance.now();
    const trace = new BlockTrace(await readEmbedded(element));
    const view = new BlockView(trace, element.dataset.note);
    drawLegend();
    view.listen();
    view.readAddress();
    byId("").dataset.loadMs = (performance.now() - began).toFixed(1);
    if (new URLSearchParams(location.hash.slice(1)).has("bench")) view.measure();
    byId("").dataset.ready = "true";
  } catch (error) {
    byId("-status").textContent = `this browser could not read the steps: ${error}`;
    throw error;
  }
}

openBlockView();
