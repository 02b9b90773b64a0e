// What a model makes of a text: surprisals, as jaxlm/scoring/surprisal.py has them, and the words
// that it expected, as jaxlm/scoring/prediction.py finds them.

const UNLIKELY = 1e-7; // a probability below that of any likely word
const MOST_CANDIDATES = 5000;

let due = 0;

// Lets the page answer its reader, some times a second.
export async function pause() {
  if (performance.now() < due) return;
  await new Promise((resolve) => setTimeout(resolve));
  due = performance.now() + 100;
}

// The most probable tokens: [{id, p}], the likeliest first.
export function likeliest(logProbs, count) {
  const ids = Array.from(logProbs.keys()).sort((a, b) => logProbs[b] - logProbs[a]);
  return ids.slice(0, count).map((id) => ({ id, p: Math.exp(logProbs[id]) }));
}

// P(B) of jaxlm/scoring/sentences.py: that the next token begins a word or ends the line.
function boundary(logProbs, tokenizer) {
  return tokenizer.config.begins.reduce((sum, id) => sum + Math.exp(logProbs[id]), 0);
}

export const total = (items, name) => items.reduce((sum, item) => sum + item[name], 0);

// The numbers of a token in its place, in bits.
function scored(logProbs, id) {
  let entropy = 0;
  let rank = 1;
  for (const value of logProbs) {
    entropy -= Math.exp(value) * value;
    if (value > logProbs[id]) rank++;
  }
  return { surprisal: -logProbs[id] / Math.LN2, entropy: entropy / Math.LN2, rank };
}

// Words and their parts, with the columns of `jaxlm surprisal`: null where they are no longer wanted.
// Words after one that no token stands for are not read.
export async function readLine(model, tokenizer, line, wanted) {
  const words = tokenizer.words(line);
  let place = model.start();
  let last = tokenizer.config.end;
  let known = 0; // the bits of the boundary before a word
  let entropy = 0;
  for (const word of words) {
    await pause();
    if (!wanted()) return null;
    Object.assign(word, { before: place, last });
    if (word.parts.some((part) => part.id < 0)) return words.slice(0, words.indexOf(word) + 1);
    for (const part of word.parts) {
      Object.assign(part, scored(model.logProbs(place), part.id));
      part.reduction = Math.max(0, entropy - part.entropy);
      place = model.after(part.id, place);
      last = part.id;
      ({ entropy } = part);
    }
    if (word.parts.length && tokenizer.begins.size) {
      word.parts[0].surprisal -= known;
      known = -Math.log2(boundary(model.logProbs(place), tokenizer));
      word.parts.at(-1).surprisal += known;
    }
    for (const name of ["surprisal", "reduction"]) word[name] = total(word.parts, name);
    Object.assign(word, { entropy: word.parts[0]?.entropy, after: place });
  }
  return words;
}

// The likeliest next words after a place whose token is `last`: a Map from each to its probability.
export async function nextWords(model, tokenizer, place, last, count, wanted) {
  const { names, begins, blank, config } = tokenizer;
  if (!begins.size) return new Map(likeliest(model.logProbs(place), count).map(({ id, p }) => [names[id], p]));
  const words = new Map();
  const candidates = [{ p: 1, ids: [], before: place, whole: false }];
  while (candidates.length && words.size < count) {
    await pause();
    if (!wanted()) return words;
    candidates.sort((a, b) => b.p - a.p).splice(MOST_CANDIDATES);
    const { p, ids, before, whole } = candidates.shift();
    if (whole) {
      const word = tokenizer.textOf(ids).trim() || "<eos>";
      words.set(word, (words.get(word) ?? 0) + p);
      continue;
    }
    const previous = ids.at(-1) ?? last;
    const here = ids.length ? model.after(previous, before) : before;
    const logProbs = model.logProbs(here);
    const ends = !blank.has(previous) && previous !== config.newline; // whether a new word may begin here
    const pOfBoundary = ends ? boundary(logProbs, tokenizer) : 0;
    if (ids.length && ends) candidates.push({ p: p * pOfBoundary, ids, whole: true });
    logProbs.forEach((logProb, id) => {
      const begun = ends && begins.has(id);
      if (ids.length ? begun : ends && !begun) return;
      const joint = (p * Math.exp(logProb)) / (begun ? pOfBoundary : 1);
      if (joint > UNLIKELY) candidates.push({ p: joint, ids: [...ids, id], before: here, whole: id === config.newline });
    });
  }
  return words;
}
