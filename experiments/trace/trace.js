"use strict";
// Draws one step at a time; `traces` is what page.py says in `data`.
const traces = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const PHASES = ["draft", "verify", "accept", "commit"];
const WIDTH = 108, COLUMN = 140, MARGIN = 4; // of a node, and of the grid
const TALL = { node: 44, row: 54 }, FLAT = { node: 24, row: 34 }; // with probabilities, and of riders, without
const LEAST_SCALE = 0.62; // smaller, and nobody can read it
let chosen = 0, step = 1;

// --- elements; texts only ever become text

function make(parent, tag, attributes = {}, text = null) {
  const drawn = parent instanceof SVGElement || tag === "svg";
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  parent.append(element);
  return element;
}

const percent = (p) => (p === null ? "–" : p > 0 && p < 0.005 ? "<1 %" : `${Math.round(100 * p)} %`);
const millis = (seconds) => `${(1000 * seconds).toPrecision(3)} ms`;

// --- the tree

const pen = document.createElement("canvas").getContext("2d"); // measures without a layout of the page
pen.font = `12px ${getComputedStyle(document.documentElement).getPropertyValue("--mono")}`;

function fit(word, width) {
  const letters = Array.from(word);
  let count = letters.length;
  const cut = () => letters.slice(0, count).join("") + (count < letters.length ? "…" : "");
  while (count > 1 && pen.measureText(cut()).width > width) count -= 1;
  return cut();
}

function drawNode(svg, [x, y], node, height) {
  const group = make(svg, "g", { class: `node ${node.kind}`, transform: `translate(${x} ${y})` });
  make(group, "title", {}, node.told);
  const inset = node.target === undefined ? (height - FLAT.node) / 2 : 0;
  make(group, "rect", { class: "frame", y: inset, width: WIDTH, height: height - 2 * inset, rx: 5 });
  make(group, "text", { x: 7, y: inset + 16 }, fit(node.word, WIDTH - 14 - 6 * (node.by || "").length));
  if (node.by) make(group, "text", { class: "part", x: WIDTH - 6, y: 14, "text-anchor": "end" }, node.by);
  if (node.target === undefined) return;
  [["draft", node.draft, 24], ["verify", node.target, 34]].forEach(([kind, value, top]) => {
    if (value === null) return;
    make(group, "rect", { class: "track", x: 7, y: top, width: 64, height: 4, rx: 2 });
    make(group, "rect", { class: kind, x: 7, y: top, width: 64 * value, height: 4, rx: 2 });
    make(group, "text", { class: "number", x: WIDTH - 6, y: top + 5.5, "text-anchor": "end" }, percent(value));
  });
}

function drawTree(box, nodes, said, { node: tall, row: pitch }) {
  box.replaceChildren();
  const depths = [];
  nodes.forEach((node) => depths.push(node.parent < 0 ? 0 : depths[node.parent] + 1));
  const width = Math.max(...depths) * COLUMN + WIDTH + 2 * MARGIN;
  const height = Math.max(...nodes.map((node) => node.row)) * pitch + tall + 2 * MARGIN;
  const scale = Math.min(1, Math.max(LEAST_SCALE, box.clientWidth / width));
  const size = { width: width * scale, height: height * scale, viewBox: `0 0 ${width} ${height}` };
  const svg = make(box, "svg", { ...size, role: "img", "aria-label": said });
  const places = nodes.map((node, j) => [MARGIN + depths[j] * COLUMN, MARGIN + node.row * pitch]);
  const order = nodes.map((_, j) => j).sort((a, b) => nodes[a].onPath - nodes[b].onPath); // the path on top
  for (const j of order.filter((j) => nodes[j].parent >= 0)) {
    const [left, above] = places[nodes[j].parent], [x, y] = places[j].map((at, axis) => at + axis * (tall / 2));
    const from = left + WIDTH, level = above + tall / 2, middle = (from + x) / 2;
    const bow = `M${from} ${level} C${middle} ${level} ${middle} ${y} ${x} ${y}`;
    make(svg, "path", { class: `edge ${nodes[j].kind}`, d: bow });
  }
  nodes.forEach((node, j) => drawNode(svg, places[j], node, tall));
}

function showEnd(box) {
  const [frame, seen] = [box.querySelector(".own"), box].map((part) => part.getBoundingClientRect());
  box.scrollBy(frame.left - seen.left - seen.width / 2, frame.top - seen.top - seen.height / 2);
}

function readNodes(data, parts) {
  const own = data.words.length - 1, kept = new Set(data.path.slice(1, 1 + data.kept));
  return data.words.map((word, j) => {
    const kind = j === 0 ? "root" : j === own ? "own" : kept.has(j) ? "accepted" : "idle";
    const by = data.sources.map((nodes, part) => (nodes.includes(j) ? part : -1)).filter((part) => part >= 0);
    const outcome = {
      root: "the text’s last token",
      own: data.kept === data.path.length ? "the target’s own" : "the target’s own, past the end",
      accepted: "accepted",
      idle: data.path.includes(j) ? "accepted, past the end" : "not accepted",
    }[kind];
    return {
      word, kind, outcome,
      parent: data.parents[j],
      row: data.rows[j],
      draft: data.draft[j],
      target: j ? data.target[j] : undefined,
      onPath: kind === "accepted" || kind === "own" ? 1 : 0,
      by: by.map((part) => part + 1).join("·"),
      names: by.map((part) => parts[part]).join(", "),
      told: `${word}: ${outcome}` + (j ? `; drafter ${percent(data.draft[j])}, target ${percent(data.target[j])}` : ""),
    };
  });
}

function listNodes(nodes) {
  const depths = [];
  find("nodes").replaceChildren();
  nodes.forEach((node) => {
    depths.push(node.parent < 0 ? 0 : depths[node.parent] + 1);
    const row = make(find("nodes"), "tr");
    make(row, "th", { scope: "row" }, node.word);
    const after = node.parent < 0 ? "" : nodes[node.parent].word;
    const target = node.target === undefined ? null : node.target;
    const cells = [after, depths.at(-1), percent(node.draft), percent(target), node.names, node.outcome];
    cells.forEach((cell, j) => make(row, "td", [0, 4, 5].includes(j) ? { class: "left" } : {}, cell));
  });
}

// --- the page

function show(number) {
  const trace = traces[chosen], count = trace.steps.length;
  step = Math.min(Math.max(number, 1), count);
  const data = trace.steps[step - 1];
  if (!data) return;
  const nodes = readNodes(data, trace.parts);
  drawTree(find("tree"), nodes, data.said, TALL);
  showEnd(find("tree"));
  listNodes(nodes);
  const { words, parents, rows } = data.riders;
  find("riding").hidden = !words.length;
  const riders = words.map((word, j) => ({ word, told: word, kind: "rider", parent: parents[j], row: rows[j], onPath: 0 }));
  if (words.length) drawTree(find("riders"), riders, `Riders: ${words.join(" ")}`, FLAT);
  showTime(data.times, trace.slowest);
  showText();
  find("said").textContent = data.said;
  const slider = find("slider");
  slider.max = count;
  slider.value = step;
  slider.setAttribute("aria-valuetext", `step ${step} of ${count}`);
  find("here").style.left = `${(100 * (step - 1)) / count}%`;
  find("here").style.width = `${100 / count}%`;
  find("first").disabled = find("back").disabled = step === 1;
  find("last").disabled = find("on").disabled = step === count;
  history.replaceState(null, "", `#${chosen}/${step}`);
}

function showTime(times, slowest) {
  const bar = find("time");
  bar.replaceChildren();
  times.forEach((seconds, j) => {
    make(bar, "i", { class: PHASES[j] }).style.width = `${(100 * seconds) / (slowest || 1)}%`;
    find("times").children[j].querySelector("b").textContent = millis(seconds);
  });
  const told = times.map((seconds, j) => `${PHASES[j]} ${millis(seconds)}`).join(", ");
  bar.setAttribute("aria-label", told);
  find("slowest").textContent = `A full bar is the slowest step’s ${millis(slowest)}.`;
}

function showText() {
  const text = document.querySelector(`[data-trace="${chosen}"] .text`);
  for (const part of text.querySelectorAll(".step")) {
    const number = Number(part.dataset.step);
    part.classList.toggle("later", number > step);
    part.classList.toggle("now", number === step);
    if (number === step) text.scrollTop = part.offsetTop + part.offsetHeight - text.clientHeight + 24;
  }
}

function choose(number) {
  chosen = number in traces ? number : chosen;
  document.querySelectorAll("[data-trace]").forEach((part) => (part.hidden = Number(part.dataset.trace) !== chosen));
  if (find("method")) find("method").value = chosen;
  document.title = `${traces[chosen].method} – specdec trace`;
  const names = traces[chosen].parts.map((name, j) => `${j + 1} ${name}`);
  find("drafter").hidden = !traces[chosen].steps.some((one) => one.draft.some((p) => p !== null));
  find("parts").textContent = names.length ? `proposed by: ${names.join(", ")}` : "";
}

function readAddress() {
  const [method, number] = location.hash.slice(1).split("/").map(Number);
  choose(Number.isInteger(method) && location.hash ? method : Number(find("method")?.value ?? 0));
  show(number || 1);
}

find("first").onclick = () => show(1);
find("back").onclick = () => show(step - 1);
find("on").onclick = () => show(step + 1);
find("last").onclick = () => show(traces[chosen].steps.length);
find("slider").oninput = (event) => show(Number(event.target.value));
document.querySelector(".strips").onclick = (event) => {
  const box = event.currentTarget.getBoundingClientRect();
  show(1 + Math.floor((traces[chosen].steps.length * (event.clientX - box.left)) / box.width));
};
document.querySelectorAll(".text").forEach((text) => {
  text.onclick = (event) => {
    const part = event.target.closest(".step");
    if (part && getSelection().isCollapsed) show(Number(part.dataset.step));
  };
});
if (find("method"))
  find("method").onchange = (event) => {
    choose(Number(event.target.value));
    show(step);
  };
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.matches("input, select")) return; // the slider has these keys already
  const to = { ArrowLeft: step - 1, ArrowRight: step + 1, Home: 1, End: traces[chosen].steps.length }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  show(to);
});
addEventListener("hashchange", readAddress);
addEventListener("resize", () => show(step));
readAddress();
