// The pool of a trace at any step. The page has changes from step to step (see embed.rs for the letters); a state is the
// nearest keyframe and the changes behind it.
"use strict";

const KINDS = ["decode", "prefill", "verify", "denoise"];
const REASONS = ["aborted", "stop", "length", "abort"];
const FREE = 0, WRITABLE = 1, SEALED = 2, SHARED = 3, CACHED = 4;
const STATE_NAMES = ["free", "writable", "sealed", "shared", "cached"];
/// Steps from one keyframe to the next.
const KEYFRAME_EVERY = 32;

/** Text of an element, inflated: JSON. */
async function readEmbedded(element) {
  const bytes = Uint8Array.from(atob(element.textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

/** A sequence: its blocks are the first `length` of `table`, which later states share and lengthen. */
class Sequence {
  constructor(table, length, computed) {
    this.table = table;
    this.length = length;
    this.computed = computed;
  }
  copy() {
    return new Sequence(this.table, this.length, this.computed);
  }
  /** The first entry that was not given back: those before it lie wholly behind the window. */
  first(window, size) {
    const seen = window ? Math.max(0, this.computed + 1 - window) : 0;
    return Math.min(this.length, Math.floor(seen / size));
  }
  append(block) {
    if (this.table[this.length] !== block) {
      // The same changes give the same table; one that differs is another life of it.
      if (this.length < this.table.length) this.table = this.table.slice(0, this.length);
      this.table.push(block);
    }
    this.length += 1;
  }
  replace(place, block) {
    this.table = this.table.slice(0, this.length);
    this.table[place] = block;
  }
  blocks() {
    return this.table.slice(0, this.length);
  }
}

class BlockTrace {
  constructor(data) {
    this.data = data;
    this.steps = data.steps;
    this.blockSize = data.block_size;
    this.numBlocks = data.num_blocks;
    this.window = data.window ?? null;
    this.ids = data.ids;
    this.names = data.requests;
    this.place = new Map(data.ids.map((id, i) => [id, i]));
    this.keyframes = [];
    this.live = new Map();
    this.published = new Uint8Array(this.ids.length);
    this.start();
    this.makeKeyframes();
  }

  /** How many blocks are ever used. */
  get blocks() {
    return this.ids.length;
  }

  start() {
    for (const [request, computed, table] of this.data.start.live) {
      this.live.set(request, new Sequence(table, table.length, computed));
    }
    for (const block of this.data.start.published) this.published[block] = 1;
    this.at = -1;
  }

  makeKeyframes() {
    this.keep();
    for (let i = 0; i < this.steps.length; i++) {
      this.advance();
      if ((i + 1) % KEYFRAME_EVERY === 0) this.keep();
    }
  }

  /** Notes the state at hand as a keyframe: of `this.at`, which is one less than a multiple of the distance. */
  keep() {
    const live = [...this.live].map(([request, sequence]) => [request, sequence.copy()]);
    this.keyframes.push({ at: this.at, live, published: this.published.slice() });
  }

  restore(keyframe) {
    this.at = keyframe.at;
    this.live = new Map(keyframe.live.map(([request, sequence]) => [request, sequence.copy()]));
    this.published.set(keyframe.published);
  }

  /** The state as step `index` of the window left it; `rows` are then that step's. */
  goTo(index) {
    if (index === this.at && this.rows) return;
    const frame = this.keyframes[Math.floor(index / KEYFRAME_EVERY)];
    if (this.at >= index || this.at < frame.at) this.restore(frame);
    while (this.at < index) this.advance();
  }

  sequence(request) {
    let sequence = this.live.get(request);
    if (!sequence) {
      sequence = new Sequence([], 0, 0);
      this.live.set(request, sequence);
    }
    return sequence;
  }

  /** Makes the next step. */
  advance() {
    this.at += 1;
    const step = this.steps[this.at];
    if (step.z) {
      this.live.clear();
      this.published.fill(0);
    }
    for (const request of step.x ?? []) this.live.delete(request);
    for (const request of step.b ?? []) this.live.delete(request);
    for (const block of step.h ?? []) this.published[block] = 0;
    eachOf(step.c, 3, (request, place, block) => this.sequence(request).replace(place, block));
    const appended = step.a ?? [];
    for (let i = 0; i < appended.length; i += 2 + appended[i + 1]) {
      const sequence = this.sequence(appended[i]);
      for (let j = 0; j < appended[i + 1]; j++) sequence.append(appended[i + 2 + j]);
    }
    this.rows = this.decodeRows(step.r);
    for (const row of this.rows) this.takeRow(row);
    eachOf(step.e, 2, (request, block) => this.sequence(request).append(block));
    for (const block of step.p ?? []) this.published[block] = 1;
    eachOf(step.f, 2, (request) => this.live.delete(request));
  }

  decodeRows(coded) {
    const rows = [];
    let request = -1;
    for (let i = 0; i < coded.length; ) {
      request += coded[i++] + 1;
      const flags = coded[i++];
      const row = { request, kind: flags & 3, drafts: 0, accepted: 0 };
      row.computed = flags & 32 ? coded[i++] : (this.live.get(request)?.computed ?? 0);
      row.queries = flags & 4 ? coded[i++] : 1;
      if (flags & 8) {
        row.drafts = coded[i++];
        row.accepted = coded[i++];
      }
      row.emitted = flags & 16 ? coded[i++] : row.accepted + 1;
      rows.push(row);
    }
    return rows;
  }

  /** What the row leaves; it keeps the table that it wrote through, which may go with the step. */
  takeRow(row) {
    const sequence = this.sequence(row.request);
    row.table = sequence.table;
    row.length = sequence.length;
    const next = row.computed + row.queries - row.drafts + row.accepted;
    sequence.computed = KINDS[row.kind] === "denoise" ? Math.max(sequence.computed, next) : next;
  }

  /** The slots that a row of the step wrote: place of the block, offset, position, and what became of it. */
  *writes(row) {
    const size = this.blockSize;
    const own = row.queries - row.drafts;
    for (let i = 0; i < row.queries; i++) {
      const position = row.computed + i;
      const index = Math.floor(position / size);
      if (index >= row.length) return;
      const fate = i < own ? "own" : i < own + row.accepted ? "accepted" : "rejected";
      yield { block: row.table[index], offset: position % size, position, fate };
    }
  }

  /** Every slot that the step wrote, as the trace numbers slots. */
  slotsWritten() {
    const stated = this.steps[this.at].w;
    if (stated) return stated;
    const slots = [];
    for (const row of this.rows) {
      for (const write of this.writes(row)) slots.push(this.ids[write.block] * this.blockSize + write.offset);
    }
    return slots;
  }

  /** State and filled slots of every block that is ever used, after the step. */
  look() {
    const states = new Uint8Array(this.blocks);
    const fills = new Uint16Array(this.blocks);
    for (let block = 0; block < this.blocks; block++) {
      if (this.published[block]) {
        states[block] = CACHED;
        fills[block] = this.blockSize;
      }
    }
    let used = 0;
    for (const sequence of this.live.values()) {
      for (let i = sequence.first(this.window, this.blockSize); i < sequence.length; i++) {
        const block = sequence.table[i];
        const filled = Math.max(0, Math.min(this.blockSize, sequence.computed - i * this.blockSize));
        if (states[block] === FREE || states[block] === CACHED) {
          used += 1;
          states[block] = filled === this.blockSize ? SEALED : WRITABLE;
          fills[block] = filled;
        } else {
          states[block] = SHARED;
          fills[block] = Math.max(fills[block], filled);
        }
      }
    }
    let cached = 0;
    for (let block = 0; block < this.blocks; block++) cached += states[block] === CACHED;
    return { states, fills, used, cached };
  }

  /** Who holds a block, with its place in their tables. */
  holders(block) {
    const holders = [];
    for (const [request, sequence] of this.live) {
      const place = sequence.table.indexOf(block);
      const first = sequence.first(this.window, this.blockSize);
      if (place >= first && place < sequence.length) holders.push({ request, place, computed: sequence.computed });
    }
    return holders;
  }
}

/** Calls `f` with each `n` entries of a flat list, if there is one. */
function eachOf(list, n, f) {
  for (let i = 0; list && i < list.length; i += n) f(...list.slice(i, i + n));
}
