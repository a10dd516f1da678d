const history_ = new History();
const byId = (id) => document.getElementById(id);
const headers = () => {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
};

const accepted = () => history_.share((event) => event.drafts[1], (event) => event.drafts[0]);
const proposing = () => history_.share((event) => event.propose_us, (event) => event.stages_us);
/** Title, unit, the series, and the digits behind the point. */
const CHARTS = [
  ["Generated", "tokens/s", () => [history_.rate("generation_tokens")], 0],
  ["Prompts", "tokens/s", () => [history_.rate("prompt_tokens"), history_.rate("prompt_tokens_cached")], 0, "of which cached"],
  ["Time to first token", "ms", () => [history_.mean("time_to_first_token", 1000)], 1],
  ["Time between tokens", "ms", () => [history_.mean("inter_token_latency", 1000)], 2],
  ["Requests that run", "", () => [history_.values("running"), history_.values("waiting")], 0, "wait"],
  ["A step", "ms", () => [history_.mean("step_time", 1000)], 2],
  ["Drafts accepted", "%", () => [accepted().map((share) => share && 100 * share)], 0],
  ["Time of a step for drafting", "%", () => [proposing().map((share) => share && 100 * share)], 0],
];

const canvases = CHARTS.map(([title]) => {
  const figure = document.createElement("figure");
  figure.innerHTML = "<figcaption></figcaption><b></b> <span class=soft></span><canvas></canvas>";
  figure.querySelector("figcaption").textContent = title;
  byId("charts").append(figure);
  return figure;
});

function last(values) {
  return values.findLast((value) => value !== null && value !== undefined);
}

function show(event) {
  byId("model").textContent = event.model;
  CHARTS.forEach(([, unit, of, digits, second], i) => {
    const series = of();
    const [value, other] = series.map(last);
    canvases[i].querySelector("b").textContent = value === undefined ? "–" : `${value.toFixed(digits)} ${unit}`;
    canvases[i].querySelector("span").textContent = second && other !== undefined ? `${other.toFixed(digits)} ${second}` : "";
    drawLines(canvases[i].querySelector("canvas"), series, Math.max(history_.events.length, 120));
  });
  const { pool } = event;
  byId("pool").textContent =
    `${pool.used} of ${pool.num_blocks} blocks of ${event.block_size} tokens are held, ${pool.free} are free ` +
    `(${pool.cached} of them hold prefixes that can be hit), ${event.preemptions} preemptions`;
  drawBlocks(byId("blocks"), pool.num_blocks, event.tables);
  byId("tables").replaceChildren(...event.tables.map(row));
  byId("hidden").textContent = event.tables_hidden ? `${event.tables_hidden} further requests are not shown` : "";
}

function row(table) {
  const line = document.createElement("tr");
  const held = table.blocks.reduce((sum, blocks) => sum + blocks.length, 0);
  const cells = [
    table.sample ? `${table.request_id}/${table.sample}` : table.request_id,
    table.prompt_tokens, table.cached_tokens, table.generated_tokens, held || "waits", table.blocks[0]?.join(" ") ?? "",
  ];
  for (const text of cells) {
    const cell = document.createElement("td");
    cell.textContent = text;
    line.append(cell);
  }
  const mark = document.createElement("span");
  mark.className = "tint";
  mark.style.background = tint(table.request_id);
  line.firstChild.prepend(mark);
  line.lastChild.className = "blocks";
  return line;
}

async function follow() {
  for (;;) {
    try {
      const response = await fetch("live", { headers: headers() });
      byId("key").hidden = response.status !== 401;
      if (response.status === 401) {
        byId("state").textContent = "an API key is needed";
        return;
      }
      byId("data").hidden = false;
      byId("state").textContent = "live";
      for await (const data of events(response)) {
        const event = JSON.parse(data);
        history_.push(event, performance.now() / 1000);
        show(event);
      }
    } catch {
      // The server is gone, or not there yet.
    }
    byId("state").textContent = "not connected";
    await new Promise((done) => setTimeout(done, 1000));
  }
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", event.target.elements.key.value);
  follow();
});
new Chat(headers);
follow();
