// From a line to words, each with its tokens, in a page that runs a model (report/live): what
// tokens.py and subwords.py do, and SentenceReader of scoring/model.py.

import { PTBTokenizer } from "../scoring/tokenizers.js";

const encoder = new TextEncoder();
const SPACE = "\u2581"; // how subwords write a space
const BYTE = /^<0x([0-9A-F]{2})>$/;
const UNITS = / *[^ ]{1,4096}| +/gu; // what is cut into subwords by itself
const WORDS = /[^\p{White_Space}\x1c-\x1f]+/gu; // between what Python takes for white space
const WORDS_OF_BYTES = /[^ \t-\r]+/g;
const BLANK_END = /[\p{White_Space}\x1c-\x1f]+$/u;

export class Tokenizer {
  constructor(config) {
    this.config = config;
    this.names = config.names;
    this.ids = new Map(this.names.map((name, id) => [name, id]));
    // Subwords that letters spell: not <unk>, not <0x41>.
    this.spelled = new Map([...this.ids].filter(([name, id]) => id !== config.unknown && !BYTE.test(name)));
    this.longest = this.names.reduce((most, name) => Math.max(most, name.length), 0);
    this.begins = new Set(config.begins);
    this.blank = new Set(config.blank);
    this.ptb = config.ptb && new PTBTokenizer(config.ptb, this.ids);
  }

  // The words at white space, {text, token, unknown, parts}; each part {id, text, token, unknown}.
  // An id is -1 where the model has no token.
  words(line) {
    const { tokens, lines, unknown } = this.config;
    const typed = line.match(tokens === "bytes" ? WORDS_OF_BYTES : WORDS) ?? [];
    if (tokens === "words") return this.wholeWords(typed);
    const words = [];
    let before;
    const text = (lines === "eos" ? line : line.replace(/^[ \t]+/, "")).replace(BLANK_END, "");
    for (const id of this.read(text)) {
      if (!words.length || (this.begins.has(id) && !this.blank.has(before))) words.push([]);
      words.at(-1).push(id);
      before = id;
    }
    return words.map((ids, place) => {
      const text = words.length === typed.length ? typed[place] : this.textOf(ids).trim();
      const parts = ids.map((id) => ({ id, token: this.names[id], unknown: id === unknown }));
      return this.word(text, parts);
    });
  }

  wholeWords(typed) {
    const pieces = this.ptb ? this.ptb.split(typed) : typed.map((word) => [word]);
    const whole = pieces.every((texts) => texts.length === 1);
    return pieces.map((texts, place) => {
      const parts = texts.map((text) => {
        const id = this.idOf(text);
        const given = whole && typed[place].toLowerCase() === text.toLowerCase() ? typed[place] : text;
        return { id, text: given, token: this.names[id], unknown: id === this.config.unknown && this.names[id] !== text };
      });
      return this.word(typed[place], parts);
    });
  }

  word(text, parts) {
    const token = parts.map((part) => part.token).join(" ");
    return { text, token, unknown: parts.some((part) => part.unknown), parts };
  }

  idOf(token) {
    return this.ids.get(this.config.lowercase ? token.toLowerCase() : token) ?? this.config.unknown;
  }

  // The ids of a text of one line.
  read(text) {
    const { tokens, lowercase, normalize, unknown } = this.config;
    if (tokens === "words") return this.words(text).flatMap((word) => word.parts.map((part) => part.id));
    const cased = lowercase ? text.toLowerCase() : text;
    if (tokens === "bytes") return [...encoder.encode(cased)];
    if (tokens === "characters") {
      return [...(normalize === "nfc" ? cased.normalize("NFC") : cased)].map((letter) => this.ids.get(letter) ?? unknown);
    }
    return (cased.match(UNITS) ?? []).flatMap((unit) =>
      unit.split(SPACE).flatMap((part, place) => [...(place ? this.bytesOf(SPACE) : []), ...this.pieces(part)]),
    );
  }

  pieces(text) {
    const letters = [...text].map((letter) => (letter === " " ? SPACE : letter));
    const found = this.config.algorithm === "bpe" ? this.merged(letters) : this.likeliest(letters);
    return found.flatMap((piece) => this.spelled.get(piece) ?? this.bytesOf(piece.replaceAll(SPACE, " ")));
  }

  bytesOf(text) {
    const names = [...encoder.encode(text)].map((byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
    return names.map((name) => this.ids.get(name) ?? this.config.unknown);
  }

  // Byte-pair encoding: the pair with the highest score is merged first.
  merged(letters) {
    const parts = [...letters];
    for (;;) {
      let best = -1;
      let highest = -Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        const score = this.config.scores[this.spelled.get(parts[i] + parts[i + 1])];
        if (score > highest) {
          best = i;
          highest = score;
        }
      }
      if (best < 0) return parts;
      parts.splice(best, 2, parts[best] + parts[best + 1]);
    }
  }

  // The unigram model: the pieces with the highest summed score.
  likeliest(letters) {
    const least = this.config.scores.reduce((least, score) => Math.min(least, score), 0) - 10;
    const best = [{ score: 0 }];
    for (let end = 1; end <= letters.length; end++) {
      best[end] = { score: best[end - 1].score + least, from: end - 1 };
      for (let from = Math.max(0, end - this.longest); from < end; from++) {
        const id = this.spelled.get(letters.slice(from, end).join(""));
        const score = best[from].score + this.config.scores[id];
        if (score > best[end].score) best[end] = { score, from };
      }
    }
    const pieces = [];
    for (let end = letters.length; end > 0; end = best[end].from) {
      pieces.unshift(letters.slice(best[end].from, end).join(""));
    }
    return pieces;
  }

  // The text of tokens that follow another.
  textOf(ids) {
    const { tokens, unknown } = this.config;
    if (tokens === "words") {
      const texts = ids.map((id) => (this.names[id] === "<eos>" ? "\n" : ` ${this.names[id]}`));
      return texts.join("").replaceAll("\n ", "\n");
    }
    if (tokens === "bytes") return new TextDecoder().decode(Uint8Array.from(ids));
    const bytes = ids.flatMap((id) => {
      const name = id === unknown ? "\ufffd" : this.names[id];
      const byte = tokens === "subwords" && BYTE.exec(name);
      return byte ? [parseInt(byte[1], 16)] : [...encoder.encode(name.replaceAll(SPACE, " "))];
    });
    return new TextDecoder().decode(Uint8Array.from(bytes));
  }
}
