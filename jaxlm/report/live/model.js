// The model: weights from base64, a step, and the log probabilities of the next token.

import { CELLS, product, rowDot } from "./cells.js";

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// Whole numbers of so many bits (8 to 16), the lowest bit first.
function unpacked(bytes, count, bits) {
  const numbers = new Int16Array(count);
  for (let i = 0; i < count; i++) {
    const byte = (i * bits) >> 3;
    const three = bytes[byte] | (bytes[byte + 1] << 8) | (bytes[byte + 2] << 16);
    numbers[i] = (three << (32 - bits - ((i * bits) & 7))) >> (32 - bits);
  }
  return numbers;
}

// Puts arrays in place of the places {offset, rows, ...} or {offset, size} of a tree.
function withArrays(tree, buffer) {
  if (Array.isArray(tree)) return tree.map((item) => withArrays(item, buffer));
  if (tree === null || typeof tree !== "object") return tree;
  if ("rows" in tree) {
    const { offset, rows, columns, bits, inputs } = tree;
    const blocks = Math.ceil(columns / inputs);
    const scales = new Float32Array(buffer, offset, rows * blocks);
    const values = unpacked(new Uint8Array(buffer, offset + 4 * rows * blocks), rows * columns, bits);
    return { rows, columns, inputs, blocks, scales, values };
  }
  if ("size" in tree) return new Float32Array(buffer, tree.offset, tree.size);
  return Object.fromEntries(Object.entries(tree).map(([name, item]) => [name, withArrays(item, buffer)]));
}

function logSoftmax(logits) {
  let highest = -Infinity;
  for (const value of logits) if (value > highest) highest = value;
  let total = 0;
  for (const value of logits) total += Math.exp(value - highest);
  const shift = highest + Math.log(total);
  return logits.map((value) => value - shift);
}

export class Model {
  constructor(config, base64) {
    this.config = config;
    this.params = withArrays(config.params, bytesOf(base64).buffer);
    this.cell = CELLS[config.kind];
  }

  // The state before the first token.
  start() {
    return this.config.widths.map((width) => {
      const state = { h: new Float32Array(width) };
      if (this.config.has_cell) state.c = new Float32Array(width);
      return state;
    });
  }

  embedded(token) {
    const { values, scales, columns, inputs, blocks } = this.params.embedding;
    const factor = this.config.embedding_scale;
    return Float32Array.from({ length: columns }, (_, i) => {
      return values[token * columns + i] * scales[token * blocks + Math.floor(i / inputs)] * factor;
    });
  }

  // Reads a token: the new state, the gates of each layer, and log p of every next token.
  step(token, state) {
    let x = this.embedded(token);
    const states = [];
    const gates = [];
    let sum = null;
    this.params.layers.forEach((params, layer) => {
      const done = this.cell(params, x, state[layer], this.config);
      x = done.output;
      sum = sum === null ? x : sum.map((value, i) => value + x[i]);
      if (this.config.running_sum) x = sum;
      states.push(done.state);
      gates.push(done.gates);
    });
    return { state: states, gates, logProbs: this.head(this.config.skip ? sum : x) };
  }

  head(x) {
    const { softmax } = this.params;
    const kernel = softmax.kernel ?? this.params.embedding;
    if (!softmax.latent_kernel) {
      const read = softmax.projection ? product(softmax.projection, x) : x;
      return logSoftmax(softmax.bias.map((bias, word) => bias + rowDot(kernel, word, read)));
    }
    const latents = product(softmax.latent_kernel, x).map((value, i) => Math.tanh(value + softmax.latent_bias[i]));
    const prior = logSoftmax(product(softmax.prior, x));
    const total = new Float64Array(softmax.bias.length);
    prior.forEach((logPrior, expert) => {
      const latent = latents.subarray(expert * kernel.columns, (expert + 1) * kernel.columns);
      const logProbs = logSoftmax(softmax.bias.map((bias, word) => bias + rowDot(kernel, word, latent)));
      logProbs.forEach((value, word) => (total[word] += Math.exp(logPrior + value)));
    });
    return Float32Array.from(total, (p) => Math.log(p + this.config.mixture_epsilon));
  }
}
