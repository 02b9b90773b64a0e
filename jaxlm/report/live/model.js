// The model: weights from base64, and places in a text with the log probabilities of what comes next.

import { CELLS, product, rowDot } from "../../models/cells.js";

const RECENT = 500; // places whose log probabilities are kept

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
    this.recent = [];
  }

  // Where the first word of a line is predicted: after <eos>.
  start() {
    const vector = (width) => new Float32Array(width);
    return this.after(this.config.end, {
      state: this.config.widths.map((width) => ({ h: vector(width), c: vector(width) })),
    });
  }

  embedded(token) {
    const { values, scales, columns, inputs, blocks } = this.params.embedding;
    const factor = this.config.embedding_scale;
    return Float32Array.from({ length: columns }, (_, i) => {
      return values[token * columns + i] * scales[token * blocks + Math.floor(i / inputs)] * factor;
    });
  }

  // Reads a token: each layer's state and gates after it, and what the softmax reads.
  after(token, before) {
    let x = this.embedded(token);
    let sum = null;
    const place = { state: [], gates: [] };
    this.params.layers.forEach((params, layer) => {
      const { output, state, gates } = this.cell(params, x, before.state[layer], this.config);
      x = output;
      sum = sum === null ? x : sum.map((value, i) => value + x[i]);
      if (this.config.running_sum) x = sum;
      place.state.push(state);
      place.gates.push(gates);
    });
    place.output = this.config.skip ? sum : x;
    return place;
  }

  // log p of every next token; those of the last places are kept.
  logProbs(place) {
    if (!place.logProbs) {
      place.logProbs = this.head(place.output);
      this.recent.push(place);
      if (this.recent.length > RECENT) delete this.recent.shift().logProbs;
    }
    return place.logProbs;
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
