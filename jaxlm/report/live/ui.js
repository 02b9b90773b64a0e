// The page: texts to surprisals, generated text, and the state inside.

import { Model } from "./model.js";
import { Tokenizer } from "./tokens.js";

const config = JSON.parse(document.getElementById("config").textContent);
const model = new Model(config, document.getElementById("weights").textContent.trim());
const tokenizer = new Tokenizer(config);
const element = (id) => document.getElementById(id);
const bits = (logProb) => -logProb / Math.LN2;

function made(tag, text, properties = {}) {
  const node = document.createElement(tag);
  node.textContent = text;
  return Object.assign(node, properties);
}

// The most probable tokens: [{id, p}], the likeliest first.
function likeliest(logProbs, count) {
  const ids = Array.from(logProbs.keys()).sort((a, b) => logProbs[b] - logProbs[a]);
  return ids.slice(0, count).map((id) => ({ id, p: Math.exp(logProbs[id]) }));
}

// The bits of P(B) in jaxlm/scoring/sentences.py: that the next token begins a word or ends the line.
function boundary(logProbs) {
  if (!config.begins.length) return 0;
  return bits(Math.log(config.begins.reduce((sum, id) => sum + Math.exp(logProbs[id]), 0)));
}

const total = (words) => words.reduce((sum, word) => sum + word.surprisal, 0);

// Reads a line after <eos>: each word with its surprisal, what was expected there, and the state after it.
function read(line) {
  let after = model.step(config.end, model.start());
  let before = 0;
  return tokenizer.words(line).map((word) => {
    const { logProbs } = after;
    const parts = word.ids.map((id) => {
      const surprisal = bits(after.logProbs[id]);
      after = model.step(id, after.state);
      return { name: config.names[id], surprisal };
    });
    parts[0].surprisal -= before;
    before = boundary(after.logProbs);
    parts[parts.length - 1].surprisal += before;
    return { ...word, parts, surprisal: total(parts), logProbs, after };
  });
}

let chosen;

function showExpected(word) {
  chosen = word;
  const list = element("expected");
  list.replaceChildren();
  for (const { id, p } of likeliest(word.logProbs, 10)) {
    list.append(made("li", `${config.names[id]} ${(100 * p).toFixed(1)}%`));
  }
  element("expected-title").textContent = `Expected in the place of “${word.text}”`;
  showGates(word);
}

function bar(word, highest) {
  const cell = made("button", "", { type: "button", className: "word" });
  const column = made("span", "", { className: "bar" });
  column.style.height = `${(100 * word.surprisal) / highest}%`;
  const frame = made("span", "", { className: "frame" });
  frame.append(column);
  cell.append(frame, made("span", word.surprisal.toFixed(1), { className: "number" }), made("span", word.text));
  if (word.unknown) cell.append(made("span", "unknown", { className: "unknown" }));
  if (word.parts.length > 1) {
    const pieces = word.parts.map((one) => `${one.name} ${one.surprisal.toFixed(1)}`).join(" · ");
    cell.append(made("small", pieces));
  }
  cell.setAttribute("aria-label", `${word.text}: ${word.surprisal.toFixed(2)} bits${word.unknown ? ", unknown word" : ""}`);
  for (const event of ["pointerenter", "focus", "click"]) cell.addEventListener(event, () => showExpected(word));
  return cell;
}

let rows = [];
let shown = [];

function update() {
  const lines = element("text").value.split("\n").filter((line) => line.trim());
  const texts = lines.map(read);
  const highest = Math.max(1, ...texts.flat().map((word) => word.surprisal));
  element("result").replaceChildren(
    ...texts.map((words, place) => {
      const section = made("section", "");
      const title = `Text ${place + 1}: ${words.length} words, perplexity ${(2 ** (total(words) / words.length)).toFixed(1)}`;
      const bars = made("div", "", { className: "bars" });
      bars.append(...words.map((word) => bar(word, highest)));
      section.append(made("h3", title), bars);
      return section;
    }),
  );
  const totals = texts.map(total);
  const [first, second] = totals;
  const likelier = first < second ? "first" : "second";
  const difference = Math.abs(first - second).toFixed(2);
  const both = `(${first?.toFixed(2)} and ${second?.toFixed(2)})`;
  element("pair").textContent = totals.length === 2 ? `The ${likelier} is likelier by ${difference} bits ${both}.` : "";
  shown = texts[0] ?? [];
  rows = texts.flatMap((words, sentence) =>
    words.map((word, place) => [sentence + 1, place + 1, word.text, word.unknown, word.surprisal.toFixed(4)]),
  );
  if (shown.length) showExpected(shown[0]);
  showState();
}

// A table of the surprisals with a separator: tab, or comma with quotes where a field needs them.
function table(separator) {
  const quoted = (field) => (separator === "," && /[",\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field);
  const lines = [["sentence_id", "word_id", "word", "oov", "surprisal"], ...rows];
  return lines.map((row) => row.map((field) => quoted(String(field))).join(separator)).join("\n") + "\n";
}

function download() {
  const link = made("a", "", { download: "surprisal.csv" });
  link.href = URL.createObjectURL(new Blob([table(",")], { type: "text/csv" }));
  link.click();
  URL.revokeObjectURL(link.href);
}

// A heat map: one row a unit, one column a word; blue below zero, orange above.
function heatMap(canvas, columns) {
  const height = columns[0]?.length ?? 0;
  canvas.width = Math.max(1, columns.length);
  canvas.height = Math.max(1, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const highest = Math.max(1e-9, ...columns.map((column) => Math.max(...column.map(Math.abs))));
  columns.forEach((column, x) =>
    column.forEach((value, y) => {
      const colour = value < 0 ? [37, 99, 235] : [232, 89, 12];
      image.data.set([...colour, (255 * Math.abs(value)) / highest], 4 * (y * canvas.width + x));
    }),
  );
  context.putImageData(image, 0, 0);
}

function showState() {
  const layer = Number(element("layer").value);
  const part = element("part").value;
  const states = shown.map((word) => word.after.state[layer][part]);
  const units = states.length ? [...states[0].keys()] : [];
  const variance = units.map((unit) => {
    const values = states.map((state) => state[unit]);
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    return values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  });
  units.sort((a, b) => variance[b] - variance[a]);
  heatMap(element("state"), states.map((state) => units.map((unit) => state[unit])));
  const words = shown.map((word) => word.text).join(" ");
  element("state").setAttribute("aria-label", `${part} of layer ${layer + 1} after each of: ${words}`);
}

function showGates(word) {
  const gates = word.after.gates[Number(element("layer").value)];
  const lines = Object.entries(gates).map(([name, values]) => {
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const open = values.filter((value) => value > 0.9).length / values.length;
    const closed = values.filter((value) => value < 0.1).length / values.length;
    const share = (value) => `${(100 * value).toFixed(0)}%`;
    return made("li", `${name}: mean ${mean.toFixed(2)}, open ${share(open)}, closed ${share(closed)}`);
  });
  element("gates").replaceChildren(made("li", `after “${word.text}”`), ...lines);
}

// Numbers in [0, 1) from a seed (mulberry32).
function randomNumbers(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function drawn(logProbs, temperature, topK, random) {
  const choices = likeliest(logProbs, topK || logProbs.length);
  const weights = choices.map(({ p }) => p ** (1 / temperature));
  let left = random() * weights.reduce((a, b) => a + b, 0);
  const place = weights.findIndex((weight) => (left -= weight) < 0);
  return choices[place < 0 ? 0 : place].id;
}

let running = 0;

async function generate() {
  const run = ++running;
  const prompt = element("text").value.split("\n")[0];
  const random = randomNumbers(Number(element("seed").value));
  const words = read(prompt);
  let after = words.length ? words[words.length - 1].after : model.step(config.end, model.start());
  const ids = [];
  for (let count = 0; count < Number(element("length").value) && run === running; count++) {
    const id = drawn(after.logProbs, Number(element("temperature").value), Number(element("top-k").value), random);
    ids.push(id);
    after = model.step(id, after.state);
    element("generated").textContent = `${prompt} ${tokenizer.textOf(ids)}`;
    await new Promise((resolve) => setTimeout(resolve));
  }
}

element("title").textContent = config.title;
element("about").textContent = config.about;
element("layer").replaceChildren(...config.widths.map((_, i) => made("option", `layer ${i + 1}`, { value: i })));
element("part").replaceChildren(...(config.has_cell ? ["h", "c"] : ["h"]).map((name) => made("option", name, { value: name })));
element("text").addEventListener("input", update);
for (const id of ["layer", "part"]) element(id).addEventListener("change", showState);
element("layer").addEventListener("change", () => chosen && showGates(chosen));
element("copy").addEventListener("click", () => navigator.clipboard.writeText(table("\t")));
element("save").addEventListener("click", download);
element("generate").addEventListener("click", generate);
element("stop").addEventListener("click", () => running++);
window.surprisals = (line) => read(line).map((word) => word.surprisal);
update();
