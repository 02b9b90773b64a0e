// The page: texts to surprisals, generated text, and the state inside.

import { Tokenizer } from "../../data/tokens.js";
import { Model } from "./model.js";
import { likeliest, nextWords, pause, readLine, total } from "./reading.js";

const element = (id) => document.getElementById(id);
const number = (id) => Math.max(0, Number(element(id).value) || 0);
const config = JSON.parse(element("config").textContent);
const model = new Model(config, element("weights").textContent.trim());
const tokenizer = new Tokenizer(config);
const ofWords = config.tokens === "words";

let texts = []; // the words of each line
let known = new Map(); // the words of lines that were read before
let chosen = {}; // a word, and the words of its text
let reading = 0; // counts the readings: a new one ends those before it
let writing = 0; // the same of generated texts

function made(tag, text, properties = {}) {
  const node = document.createElement(tag);
  node.textContent = text;
  return Object.assign(node, properties);
}

async function update() {
  const turn = ++reading;
  const lines = element("text").value.split("\n").filter((line) => line.trim());
  for (const [place, line] of lines.entries()) {
    if (known.has(line)) continue;
    element("pair").textContent = `Reading text ${place + 1} of ${lines.length}.`;
    const words = await readLine(model, tokenizer, line, () => turn === reading);
    if (!words) return;
    known.set(line, words);
  }
  known = new Map(lines.map((line) => [line, known.get(line)]));
  texts = lines.map((line) => known.get(line));
  const highest = texts.flat().reduce((most, word) => Math.max(most, word.surprisal ?? 0), 1);
  element("result").replaceChildren(...texts.map((words, place) => section(words, place + 1, highest)));
  element("pair").textContent = texts.length === 2 ? comparison(...texts.map((words) => total(words, "surprisal"))) : "";
  choose(texts[0]?.[0], texts[0] ?? []);
}

function comparison(first, second) {
  const likelier = first < second ? "first" : "second";
  const bits = [Math.abs(first - second), first, second].map((value) => value.toFixed(2));
  return `The ${likelier} is likelier by ${bits[0]} bits (${bits[1]} and ${bits[2]}).`;
}

function section(words, place, highest) {
  const node = made("section", "");
  const bars = made("div", "", { className: "bars", dir: "auto" });
  bars.append(...words.map((word) => bar(word, words, highest)));
  const perplexity = 2 ** (total(words, "surprisal") / rowsOf(words).length);
  const unread = words.find((word) => !word.after);
  const title = unread
    ? `the model has no token for a part of “${unread.text}”`
    : `${words.length} words, perplexity ${perplexity.toFixed(1)}`;
  node.append(made("h3", `Text ${place}: ${title}`), bars);
  return node;
}

function bar(word, words, highest) {
  const cell = made("button", "", { type: "button", className: "word" });
  const surprisal = word.surprisal ?? 0;
  const column = made("span", "", { className: "bar" });
  column.style.height = `${(100 * surprisal) / highest}%`;
  const frame = made("span", "", { className: "frame" });
  frame.append(column);
  cell.append(frame, made("span", surprisal.toFixed(1), { className: "number" }), made("span", word.text));
  if (word.unknown) cell.append(made("span", "unknown", { className: "unknown" }));
  if (word.after && word.parts.length > 1) {
    const pieces = word.parts.map((part) => `${part.token} ${part.surprisal.toFixed(1)}`);
    cell.append(made("small", pieces.join(" · ")));
  }
  cell.ariaLabel = `${word.text}: ${surprisal.toFixed(2)} bits${word.unknown ? ", unknown word" : ""}`;
  for (const event of ["pointerenter", "focus", "click"]) cell.addEventListener(event, () => choose(word, words));
  return cell;
}

function choose(word, words) {
  const sameText = words === chosen.words;
  chosen = { word, words };
  showExpected();
  showGates();
  if (!sameText) showState();
}

async function showExpected() {
  const { word } = chosen;
  element("expected-title").textContent = word ? `Expected in the place of “${word.text}”` : "";
  element("expected").replaceChildren();
  if (!word) return;
  const wanted = () => word === chosen.word;
  const expected = await nextWords(model, tokenizer, word.before, word.last, 10, wanted);
  const items = [...expected].map(([next, p]) => made("li", `${next} ${(100 * p).toFixed(1)}%`));
  if (wanted()) element("expected").replaceChildren(...items);
}

// The rows of `jaxlm surprisal`: tokens, or words that are made of pieces.
function rowsOf(words) {
  const rows = ofWords ? words.flatMap((word) => word.parts) : words;
  return rows.filter((row) => row.entropy !== undefined);
}

// Its table with a separator: tab, or comma with quotes where a field needs them.
function table(separator) {
  const names = ofWords ? ["token_id", "word", "token"] : ["word_id", "word", "tokens"];
  const header = ["sentence_id", ...names, "oov", "surprisal", "entropy", "entropy_reduction"];
  if (ofWords) header.push("rank");
  const rows = texts.flatMap((words, sentence) =>
    rowsOf(words).map((row, place) => {
      const numbers = [row.surprisal, row.entropy, row.reduction].map((value) => value.toFixed(6));
      const oov = row.unknown ? "True" : "False";
      return [sentence + 1, place + 1, row.text, row.token, oov, ...numbers, row.rank].slice(0, header.length);
    }),
  );
  const cell = (field) => {
    if (separator === "\t") return String(field).replaceAll("\t", "\u2581");
    return /[",\r\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field;
  };
  return [header, ...rows].map((row) => `${row.map(cell).join(separator)}\n`).join("");
}

async function copy() {
  const said = element("said");
  said.textContent = "";
  try {
    await navigator.clipboard.writeText(table("\t"));
    said.textContent = "Copied.";
  } catch {
    said.textContent = "This browser lets no page copy: save the table instead.";
  }
}

function save() {
  const link = made("a", "", { download: "surprisal.csv" });
  link.href = URL.createObjectURL(new Blob([table(",")], { type: "text/csv" }));
  link.click();
  URL.revokeObjectURL(link.href);
}

// A heat map of the text's words: one row a unit, the most variable first; blue below zero.
function showState() {
  const layer = Number(element("layer").value);
  const part = element("part").value;
  const read = (chosen.words ?? []).filter((word) => word.after);
  const states = read.map((word) => word.after.state[layer][part]);
  const variance = Array.from(states[0] ?? [], (_, unit) => {
    const mean = states.reduce((sum, state) => sum + state[unit], 0) / states.length;
    return states.reduce((sum, state) => sum + (state[unit] - mean) ** 2, 0);
  });
  const units = [...variance.keys()].sort((a, b) => variance[b] - variance[a]);
  const highest = states.reduce((most, state) => state.reduce((a, b) => Math.max(a, Math.abs(b)), most), 1e-9);
  const canvas = element("state");
  canvas.width = Math.max(1, states.length);
  canvas.height = Math.max(1, units.length);
  const image = new ImageData(canvas.width, canvas.height);
  units.forEach((unit, y) =>
    states.forEach((state, x) => {
      const colour = state[unit] < 0 ? [37, 99, 235] : [232, 89, 12];
      image.data.set([...colour, (255 * Math.abs(state[unit])) / highest], 4 * (y * canvas.width + x));
    }),
  );
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.ariaLabel = `${part} of layer ${layer + 1} after each of: ${read.map((word) => word.text).join(" ")}`;
}

function showGates() {
  const { word } = chosen;
  const gates = word?.after?.gates[Number(element("layer").value)] ?? {};
  const lines = Object.entries(gates).map(([name, values]) => {
    const share = (test) => `${((100 * values.filter(test).length) / values.length).toFixed(0)}%`;
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    return `${name}: mean ${mean.toFixed(2)}, open ${share((value) => value > 0.9)}, closed ${share((value) => value < 0.1)}`;
  });
  if (word) lines.unshift(`after “${word.text}”`);
  element("gates").replaceChildren(...lines.map((line) => made("li", line)));
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

function drawn(logProbs, random) {
  const choices = likeliest(logProbs, number("top-k") || logProbs.length);
  const temperature = Math.max(1e-6, number("temperature")); // at 0 the likeliest alone has a weight
  const weights = choices.map(({ p }) => Math.exp(Math.log(p / choices[0].p) / temperature));
  let left = random() * weights.reduce((sum, weight) => sum + weight, 0);
  return choices[Math.max(0, weights.findIndex((weight) => (left -= weight) < 0))].id;
}

async function generate() {
  const turn = ++writing;
  const output = element("generated");
  const [prompt] = element("text").value.split("\n");
  const given = tokenizer.read(prompt);
  output.textContent = given.includes(-1) ? "The model has no token for a part of the first line." : prompt;
  if (given.includes(-1)) return;
  const random = randomNumbers(number("seed"));
  const ids = [];
  let place = given.reduce((before, id) => model.after(id, before), model.start());
  output.ariaBusy = "true";
  while (ids.length < number("length") && turn === writing) {
    ids.push(drawn(model.logProbs(place), random));
    place = model.after(ids.at(-1), place);
    output.textContent = (prompt + tokenizer.textOf(ids)).replace(/^ /, "");
    await pause();
  }
  if (turn === writing) output.ariaBusy = "false";
}

element("title").textContent = config.title;
element("about").textContent = config.about;
element("layer").append(...config.widths.map((_, i) => made("option", `layer ${i + 1}`, { value: i })));
element("part").append(...Object.keys(model.start().state[0]).sort().reverse().map((name) => made("option", name)));
element("text").addEventListener("input", update);
element("part").addEventListener("change", showState);
element("layer").addEventListener("change", () => [showState, showGates].forEach((show) => show()));
element("copy").addEventListener("click", copy);
element("save").addEventListener("click", save);
element("generate").addEventListener("click", generate);
element("stop").addEventListener("click", () => writing++);
window.surprisals = async (line) => {
  const words = await readLine(model, tokenizer, line, () => true);
  return rowsOf(words).map((row) => row.surprisal);
};
update();
