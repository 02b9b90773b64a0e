// One step of each kind of layer: (parameters, input, state) -> {output, state, gates}.
// Each repeats the Python kind of its name, in a page (report/live). Vectors are Float32Arrays; a
// matrix [outputs, inputs] has whole numbers, with a scale for some inputs each.

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const add = (a, b) => a.map((value, i) => value + b[i]);
const multiply = (a, b) => a.map((value, i) => value * b[i]);
const part = (vector, size, place) => vector.subarray(place * size, (place + 1) * size);

// The dot product of a matrix's row with a vector.
export function rowDot(matrix, row, x) {
  const { values, scales, columns, inputs, blocks } = matrix;
  const start = row * columns;
  let total = 0;
  for (let block = 0; block < blocks; block++) {
    const first = block * inputs;
    const last = Math.min(first + inputs, columns);
    let sum = 0;
    for (let i = first; i < last; i++) sum += values[start + i] * x[i];
    total += sum * scales[row * blocks + block];
  }
  return total;
}

export function product(matrix, x) {
  const y = new Float32Array(matrix.rows);
  for (let row = 0; row < matrix.rows; row++) y[row] = rowDot(matrix, row, x);
  return y;
}

// lstm.py; gates i, j, f, o.
function lstm(params, x, state, config) {
  const size = state.h.length;
  const z = add(product(params.kernel, Float32Array.of(...x, ...state.h)), params.bias);
  const i = part(z, size, 0).map(sigmoid);
  const j = part(z, size, 1).map(Math.tanh);
  const f = part(z, size, 2).map((value) => sigmoid(value + config.forget_bias));
  const o = part(z, size, 3).map(sigmoid);
  const c = add(multiply(f, state.c), multiply(i, j));
  const h = multiply(o, c.map(Math.tanh));
  return { output: h, state: { c, h }, gates: { "input i": i, "forget f": f, "output o": o } };
}

// gru.py; gates r, z and the candidate n.
function gru(params, x, { h }) {
  const size = h.length;
  const fromInput = add(product(params.kernel, x), params.bias);
  const fromState = product(params.recurrent_kernel, h);
  const both = add(fromInput.subarray(0, 2 * size), fromState.subarray(0, 2 * size)).map(sigmoid);
  const r = part(both, size, 0);
  const z = part(both, size, 1);
  const shifted = add(part(fromState, size, 2), params.recurrent_bias);
  const n = add(part(fromInput, size, 2), multiply(r, shifted)).map(Math.tanh);
  const next = h.map((value, k) => (1 - z[k]) * n[k] + z[k] * value);
  return { output: next, state: { h: next }, gates: { "reset r": r, "update z": z } };
}

// mingru.py: MinGRU (one gate) and MinLSTM (two gates that are made to sum to one).
function minimal(params, x, { h }, gates, positive) {
  const size = h.length;
  const z = add(product(params.kernel, x), params.bias);
  let candidate = part(z, size, gates);
  if (positive) candidate = candidate.map((value) => (value >= 0 ? value + 0.5 : sigmoid(value)));
  let update = part(z, size, 0).map(sigmoid);
  if (gates === 2) {
    const forget = part(z, size, 0).map(sigmoid);
    const input = part(z, size, 1).map(sigmoid);
    update = input.map((value, k) => value / (value + forget[k]));
  }
  const next = h.map((value, k) => (1 - update[k]) * value + update[k] * candidate[k]);
  return { output: next, state: { h: next }, gates: { update } };
}

const mingru = (params, x, state, config) => minimal(params, x, state, 1, config.positive);
const minlstm = (params, x, state, config) => minimal(params, x, state, 2, config.positive);

function layerNorm(x) {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const centred = x.map((value) => value - mean);
  const variance = centred.reduce((sum, value) => sum + value * value, 0) / x.length;
  return centred.map((value) => value / Math.sqrt(variance + 1e-5));
}

// mogrifier.py; gates i, j, f, o, or j, f, o where the input gate is coupled.
function mogrifier(params, x, state, config) {
  const size = state.h.length;
  let { h } = state;
  params.rounds.forEach((round, place) => {
    const read = place % 2 ? x : h;
    const scores = round.full ? product(round.full, read) : product(round.right, product(round.left, read));
    const gate = add(scores, round.bias).map((value) => 2 * sigmoid(value));
    if (place % 2) h = multiply(h, gate);
    else x = multiply(x, gate);
  });
  let fromInput = product(params.input_kernel, x);
  let fromState = product(params.state_kernel, h);
  if (params.norms) {
    fromInput = multiply(layerNorm(fromInput), params.norms.input);
    fromState = multiply(layerNorm(fromState), params.norms.state);
  }
  const z = add(add(fromInput, fromState), params.bias);
  const coupled = config.input_gate === "coupled";
  const first = coupled ? 0 : 1;
  const j = part(z, size, first).map(Math.tanh);
  const f = part(z, size, first + 1).map(sigmoid);
  const o = part(z, size, first + 2).map(sigmoid);
  let i = coupled ? f.map((value) => 1 - value) : part(z, size, 0).map(sigmoid);
  if (config.input_gate === "capped") i = i.map((value, k) => Math.min(value, 1 - f[k]));
  let c = add(multiply(f, state.c), multiply(i, j));
  const shown = params.norms ? add(multiply(layerNorm(c), params.norms.cell), params.norms.cell_bias) : c;
  const output = multiply(o, shown.map(Math.tanh));
  const clip = config.cell_clip;
  if (clip !== null) c = c.map((value) => Math.max(-clip, Math.min(clip, value)));
  return { output, state: { c, h: output }, gates: { "input i": i, "forget f": f, "output o": o } };
}

export const CELLS = { lstm, gru, mingru, minlstm, mogrifier };
