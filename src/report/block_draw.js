// Pictures of the pool and of one table, on canvases.
"use strict";

/** Colours as the page's style has them, so that dark mode is one place. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    states: STATE_NAMES.map((name) => of(name)),
    tints: STATE_NAMES.map((name) => of(`${name}-tint`)),
    line: of("line"), text: of("text"), soft: of("soft"), page: of("page"),
    own: of("written"), accepted: of("accepted"), rejected: of("rejected"), chosen: of("text"),
  };
}

/** A canvas of so many CSS pixels, sharp on any screen. */
function prepare(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Edge of a block in the pool's grid, by how many there are. */
function cellEdge(blocks) {
  const edges = [[40, 66], [96, 46], [320, 30], [1200, 18], [4000, 11], [12000, 7], [30000, 5]];
  return edges.find(([most]) => blocks <= most)?.[1] ?? 3;
}

class PoolPicture {
  constructor(canvas) {
    this.canvas = canvas;
  }

  layout(blocks) {
    this.edge = cellEdge(blocks);
    const width = Math.max(200, this.canvas.parentElement.clientWidth);
    this.columns = Math.max(1, Math.floor(width / this.edge));
    this.height = Math.ceil(blocks / this.columns) * this.edge + 2;
    this.blocks = blocks;
    this.width = width;
  }

  /** The block under a mouse, or null. */
  blockAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.edge);
    const row = Math.floor((event.clientY - box.top) / this.edge);
    const block = row * this.columns + column;
    return column >= 0 && column < this.columns && row >= 0 && block < this.blocks ? block : null;
  }

  corner(block) {
    return [(block % this.columns) * this.edge, Math.floor(block / this.columns) * this.edge];
  }

  draw(trace, look, writes, marked, chosen) {
    this.layout(trace.blocks);
    const context = prepare(this.canvas, this.width, this.height);
    const colours = palette();
    const gap = this.edge >= 11 ? 2 : this.edge >= 5 ? 1 : 0.5;
    const side = this.edge - gap;
    if (this.edge < 11) this.paint(context, look, colours);
    else this.drawStates(context, trace, look, colours, side);
    this.drawWrites(context, trace, writes, colours, side);
    if (this.edge >= 30) this.drawNumbers(context, trace, look, colours, side);
    this.drawMarks(context, marked, chosen, colours, side);
  }

  /** Tens of thousands of blocks: a pixel each, made larger, and lines between them. */
  paint(context, look, colours) {
    const rows = Math.ceil(this.blocks / this.columns);
    const small = new OffscreenCanvas(this.columns, rows), pixels = small.getContext("2d");
    const image = pixels.createImageData(this.columns, rows), words = new Uint32Array(image.data.buffer);
    const words32 = STATE_NAMES.map((_, state) => pixelWord(pixels, state === FREE ? colours.tints[FREE] : colours.states[state]));
    for (let block = 0; block < this.blocks; block++) words[block] = words32[look.states[block]];
    pixels.putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, this.columns * this.edge, rows * this.edge);
    const gap = this.edge >= 5 ? 1 : 0.5;
    context.fillStyle = colours.page;
    for (let i = 1; i <= this.columns; i++) context.fillRect(i * this.edge - gap, 0, gap, rows * this.edge);
    for (let i = 1; i <= rows; i++) context.fillRect(0, i * this.edge - gap, this.columns * this.edge, gap);
  }

  drawStates(context, trace, look, colours, side) {
    // Once a colour, not once a block: there may be tens of thousands.
    for (let state = 0; state < STATE_NAMES.length; state++) {
      context.fillStyle = colours.tints[state];
      for (let block = 0; block < trace.blocks; block++) {
        if (look.states[block] === state) context.fillRect(...this.corner(block), side, side);
      }
      context.fillStyle = colours.states[state];
      if (state === FREE) continue;
      for (let block = 0; block < trace.blocks; block++) {
        if (look.states[block] !== state) continue;
        this.fill(context, this.corner(block), side, look.fills[block], trace.blockSize);
      }
    }
  }

  /** The filled part of a block: slot by slot from its corner on where slots are drawn, else from the top down. */
  fill(context, [x, y], side, filled, size) {
    if (this.edge < 18 || filled === size) {
      context.fillRect(x, y, side, (side * filled) / size);
      return;
    }
    const columns = Math.ceil(Math.sqrt(size)), cell = side / columns;
    const rows = Math.floor(filled / columns), rest = filled % columns;
    context.fillRect(x, y, side, rows * cell);
    context.fillRect(x, y + rows * cell, rest * cell, cell);
  }

  /** Slots as cells of a block where there is room, else one spot a block. */
  drawWrites(context, trace, writes, colours, side) {
    const columns = Math.ceil(Math.sqrt(trace.blockSize));
    const cell = side / columns;
    for (const { block, offset, fate } of writes) {
      const [x, y] = this.corner(block);
      if (this.edge < 18) {
        context.fillStyle = colours[fate];
        context.fillRect(x + side / 4, y + side / 4, side / 2, side / 2);
        continue;
      }
      const left = x + (offset % columns) * cell, top = y + Math.floor(offset / columns) * cell;
      fillSlot(context, left, top, cell - 1, cell - 1, fate, colours);
    }
  }

  drawNumbers(context, trace, look, colours, side) {
    context.font = "10px system-ui, sans-serif";
    context.textBaseline = "top";
    for (let block = 0; block < trace.blocks; block++) {
      const [x, y] = this.corner(block);
      const text = String(trace.ids[block]);
      context.fillStyle = colours.page;
      context.globalAlpha = 0.75;
      context.fillRect(x + 1, y + 1, context.measureText(text).width + 3, 11);
      context.globalAlpha = 1;
      context.fillStyle = colours.text;
      context.fillText(text, x + 2, y + 2);
    }
  }

  drawMarks(context, marked, chosen, colours, side) {
    context.strokeStyle = colours.chosen;
    context.lineWidth = this.edge >= 11 ? 2 : 1;
    for (const block of marked) {
      const [x, y] = this.corner(block);
      context.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
    }
    if (chosen === null) return;
    const [x, y] = this.corner(chosen);
    context.setLineDash([3, 2]);
    context.lineWidth = 3;
    context.strokeRect(x - 0.5, y - 0.5, side + 1, side + 1);
    context.setLineDash([]);
  }
}

/** A colour as four bytes of an image. */
function pixelWord(context, colour) {
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return new Uint32Array(context.getImageData(0, 0, 1, 1).data.buffer)[0];
}

/** A slot that was written: drafts are hatched, rejected ones crossed. */
function fillSlot(context, x, y, width, height, fate, colours) {
  context.fillStyle = fate === "own" ? colours.own : colours.page;
  context.fillRect(x, y, width, height);
  if (fate === "own") return;
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.strokeStyle = colours[fate];
  context.lineWidth = 1.5;
  context.beginPath();
  for (let at = -height; at < width; at += 3.5) {
    context.moveTo(x + at, y + height);
    context.lineTo(x + at + height, y);
    if (fate === "rejected") {
      context.moveTo(x + at, y);
      context.lineTo(x + at + height, y + height);
    }
  }
  context.stroke();
  context.lineWidth = 2;
  context.strokeRect(x, y, width, height);
  context.restore();
}

/** One sequence's table: blocks in its order, each with its slots. */
function drawTable(canvas, trace, look, table, computed, writes) {
  const colours = palette();
  const width = Math.max(200, canvas.parentElement.clientWidth);
  const cell = Math.max(5, Math.min(13, Math.floor(220 / trace.blockSize)));
  const blockWidth = trace.blockSize * cell, rowHeight = cell + 24;
  const columns = Math.max(1, Math.floor((width + 14) / (blockWidth + 14)));
  const lines = Math.ceil(table.length / columns);
  const context = prepare(canvas, width, Math.max(1, Math.min(lines, 400) * rowHeight));
  const fates = new Map(writes.map((write) => [write.position, write.fate]));
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "top";
  table.slice(0, columns * 400).forEach((block, index) => {
    const x = (index % columns) * (blockWidth + 14), y = Math.floor(index / columns) * rowHeight;
    const first = index * trace.blockSize;
    context.fillStyle = colours.text;
    context.fillText(`${trace.ids[block] ?? "given back"}`, x, y + 2);
    context.fillStyle = colours.soft;
    const positions = `${first}–${first + trace.blockSize - 1}`;
    context.fillText(positions, x + blockWidth - context.measureText(positions).width, y + 2);
    for (let offset = 0; offset < trace.blockSize; offset++) {
      const fate = fates.get(first + offset);
      const left = x + offset * cell, top = y + 15;
      if (fate) {
        fillSlot(context, left, top, cell - 1, cell, fate, colours);
        continue;
      }
      context.fillStyle = first + offset < computed && block in trace.ids ? colours.states[look.states[block]] : colours.tints[FREE];
      context.fillRect(left, top, cell - 1, cell);
    }
  });
}
