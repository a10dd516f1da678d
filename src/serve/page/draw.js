/** A colour as the page's style has it. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A colour for a request, the same as long as it runs. */
function tint(name) {
  let hash = 0;
  for (const letter of name) hash = (hash * 31 + letter.codePointAt(0)) >>> 0;
  return `hsl(${Math.round((hash % 997) * 137.508) % 360} 65% 55%)`;
}

/** A canvas of so many CSS pixels, sharp on any screen. */
function prepare(canvas, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.parentElement.clientWidth - 16;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return [context, width];
}

/** Draws series of one length from 0 up; null leaves a gap. */
function drawLines(canvas, series, most) {
  const height = 70;
  const [context, width] = prepare(canvas, height);
  const top = Math.max(...series.flat().filter((value) => value !== null), 1e-9);
  series.forEach((values, at) => {
    context.strokeStyle = colour("ab"[at]);
    context.lineWidth = 1.5;
    context.beginPath();
    let open = false;
    values.forEach((value, i) => {
      if (value === null) {
        return;
      }
      const x = width - ((values.length - 1 - i) / (most - 1)) * width;
      const y = height - 2 - (value / top) * (height - 6);
      if (open) context.lineTo(x, y);
      else context.moveTo(x, y);
      open = true;
    });
    context.stroke();
  });
}

/** Draws each block of the first KV group as a cell, in the colour of the request that holds it. */
function drawBlocks(canvas, blocks, tables) {
  const [, width] = prepare(canvas, 10);
  const edge = [[300, 16], [1200, 10], [6000, 6], [20000, 4]].find(([most]) => blocks <= most)?.[1] ?? 3;
  const columns = Math.max(Math.floor(width / edge), 1);
  const [context] = prepare(canvas, Math.ceil(blocks / columns) * edge);
  const held = new Map();
  for (const table of tables) {
    for (const block of table.blocks[0] ?? []) {
      if (block >= 0) held.set(block, held.has(block) ? colour("text") : tint(table.request_id));
    }
  }
  for (let block = 0; block < blocks; block += 1) {
    context.fillStyle = held.get(block) ?? colour("free");
    context.fillRect((block % columns) * edge, Math.floor(block / columns) * edge, edge - 1, edge - 1);
  }
}
