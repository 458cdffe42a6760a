"use strict";
// Draws the figures, in the page's colours; finds tasks; shows a layer's owner map; copies code.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const views = [];
const PAPER = 680; // pixels of a printed line
const models = () => Bokeh.documents.flatMap((document) => [...document.all_models]);

function colours(paper) {
  return dark.matches && !paper
    ? { page: "dark", soft: "#a3adbb", line: "#323a46" }
    : { page: "light", soft: "#5a6270", line: "#dde1e7" };
}

function paint(paper = false) {
  const { page, soft, line } = colours(paper);
  for (const model of models()) {
    if (model.type.endsWith("Axis")) {
      model.major_label_text_color = model.axis_label_text_color = soft;
      if (model.axis_line_color !== null) model.axis_line_color = line;
      if (model.major_tick_line_color !== null) model.major_tick_line_color = line;
    } else if (model.type === "Grid") {
      if (model.grid_line_color !== null) model.grid_line_color = line;
    } else if (model.name === "on light" || model.name === "on dark") {
      model.visible = model.name === `on ${page}`;
    }
  }
  if (paper) for (const view of views) view.repaint?.(); // at once: what is not drawn now is not printed
}

async function draw() {
  const figures = [...document.querySelectorAll("[data-plot]")];
  await Promise.all(figures.map(async (box) => {
    const item = read(`data-${box.dataset.plot}`);
    views.push(...(await Bokeh.embed.embed_item(item, box.id)).roots);
  }));
  paint();
  const maps = document.getElementById("layer");
  if (maps) await showMaps(maps);
  await Promise.all(Bokeh.documents.map((document) => new Promise((done) => {
    if (document.is_idle) done();
    else document.idle.connect(done);
  })));
  document.documentElement.dataset.plotsDrawn = String(Bokeh.documents.length);
}

// ---- finding tasks

function find(text) {
  const wanted = text.trim().toLowerCase();
  const fits = (name) => name.toLowerCase().includes(wanted);
  for (const row of document.querySelectorAll("tr[data-task]")) row.hidden = !fits(row.dataset.task);
  for (const button of document.querySelectorAll(".legend button")) {
    button.setAttribute("aria-pressed", String(wanted !== "" && button.dataset.task.toLowerCase() === wanted));
  }
  for (const source of models()) {
    if (source.type !== "ColumnDataSource" || !source.data.task || !source.data.alpha) continue;
    const alpha = Array.from(source.data.task, (name) => (fits(name) || name === "free" ? 1 : 0.08));
    source.data = { ...source.data, alpha };
  }
}

function findBy(input) {
  input.addEventListener("input", () => find(input.value));
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      input.value = input.value === button.dataset.task ? "" : button.dataset.task;
      find(input.value);
    });
  }
}

// ---- owner maps

const AXES = 90; // pixels that toolbar and axes take

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function showMaps(select) {
  const { tasks, maps } = read("data-maps");
  const source = models().find((model) => model.name === "owner cells");
  const plot = models().find((model) => model.name === "owner map");
  const box = document.getElementById("plot-owners");
  const caption = document.getElementById("owners-caption");
  const readout = document.getElementById("readout");
  const Cells = source.data.image[0].constructor;
  let shown, cells;
  const show = async () => {
    shown = maps[select.value];
    const bytes = await unpack(shown.cells);
    cells = Cells.BYTES_PER_ELEMENT === 2 ? new Uint16Array(bytes) : new Uint8Array(bytes);
    const [rows, columns] = shown.size;
    const room = box.parentElement.clientWidth;
    const width = Math.min(room, Math.max(350, AXES + 520 * columns / rows));
    box.style.maxWidth = `${width}px`;
    plot.height = AXES + Math.round(Math.min(520, Math.max(120, (width - AXES) * rows / columns)));
    source.data = { image: [new Cells(cells, shown.shape)], rows: [rows], columns: [columns] };
    plot.x_range.setv({ start: 0, end: columns, reset_start: 0, reset_end: columns });
    plot.y_range.setv({ start: rows, end: 0, reset_start: rows, reset_end: 0 });
    caption.textContent = shown.caption;
    readout.textContent = "";
  };
  const tell = (event) => {
    const [rows, columns] = shown.size;
    const inside = event.x >= 0 && event.y >= 0 && event.x < columns && event.y < rows;
    if (!inside) return void (readout.textContent = "");
    const row = Math.floor(event.y / rows * shown.shape[0]);
    const column = Math.floor(event.x / columns * shown.shape[1]);
    const owner = cells[row * shown.shape[1] + column];
    const place = `row ${Math.floor(event.y)}, column ${Math.floor(event.x)}`;
    readout.textContent = `${place}: ${owner ? tasks[owner - 1] : "free"}`;
  };
  plot.on_event("mousemove", tell);
  plot.on_event("tap", tell);
  plot.on_event("mouseleave", () => { readout.textContent = ""; });
  select.addEventListener("change", show);
  await show();
}

// ---- copying

for (const button of document.querySelectorAll(".code button")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("pre");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

const input = document.getElementById("find");
if (input) findBy(input);
dark.addEventListener("change", () => paint());
addEventListener("beforeprint", () => {
  for (const box of document.querySelectorAll("[data-plot]")) box.style.zoom = Math.min(1, PAPER / box.clientWidth);
  paint(true);
});
addEventListener("afterprint", () => {
  for (const box of document.querySelectorAll("[data-plot]")) box.style.zoom = "";
  paint();
});
draw();
