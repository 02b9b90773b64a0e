// From a line to words, each with its tokens: words, characters, bytes or SentencePiece subwords.

const encoder = new TextEncoder();
const BYTE = /^<0x([0-9A-F]{2})>$/;

export class Tokenizer {
  constructor(config) {
    this.config = config;
    this.names = config.names;
    this.ids = new Map(this.names.map((name, id) => [name, id]));
    // Subwords that letters spell: not <unk>, not <0x41>.
    this.spelled = new Map([...this.ids].filter(([name, id]) => id !== config.unknown && !BYTE.test(name)));
    this.longest = Math.max(...this.names.map((name) => name.length));
  }

  // [{text, ids, unknown}] of the words at white space.
  words(line) {
    const texts = line.trim().split(/\s+/).filter(Boolean);
    if (this.config.tokens === "words") return texts.map((text) => this.wholeWord(text));
    return texts.map((text, place) => {
      const spelled = this.config.lowercase ? text.toLowerCase() : text;
      const ids = this.pieces((place ? " " : "") + spelled);
      return { text, ids, unknown: ids.includes(this.config.unknown) };
    });
  }

  wholeWord(text) {
    const choices = [text, text.replace(/[.,;:!?"]+$/, "")];
    if (this.config.lowercase) choices.push(...choices.map((word) => word.toLowerCase()));
    if (/^[+-]?[\d.,]*\d[\d.,]*$/.test(text)) choices.push("N");
    const known = choices.find((word) => this.ids.has(word));
    const id = known === undefined ? this.config.unknown : this.ids.get(known);
    return { text, ids: [id], unknown: known === undefined };
  }

  pieces(text) {
    if (this.config.tokens === "bytes") return [...encoder.encode(text)];
    const letters = [...text];
    if (this.config.tokens === "characters") {
      return letters.map((letter) => this.ids.get(letter) ?? this.config.unknown);
    }
    const spelled = letters.map((letter) => (letter === " " ? "\u2581" : letter));
    const found = this.config.algorithm === "bpe" ? this.merged(spelled) : this.likeliest(spelled);
    return found.flatMap((piece) => this.spelled.get(piece) ?? this.bytesOf(piece));
  }

  bytesOf(piece) {
    const text = piece.replaceAll("\u2581", " ");
    return [...encoder.encode(text)].map((byte) => {
      const name = `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
      return this.ids.get(name) ?? this.config.unknown;
    });
  }

  // Byte-pair encoding: the pair with the highest score is merged first.
  merged(pieces) {
    let parts = [...pieces];
    for (;;) {
      let best = -1;
      let score = -Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        const id = this.spelled.get(parts[i] + parts[i + 1]);
        if (id !== undefined && this.config.scores[id] > score) {
          best = i;
          score = this.config.scores[id];
        }
      }
      if (best < 0) return parts;
      parts = [...parts.slice(0, best), parts[best] + parts[best + 1], ...parts.slice(best + 2)];
    }
  }

  // The unigram model: the pieces with the highest summed score.
  likeliest(letters) {
    const least = Math.min(...this.config.scores) - 10;
    const best = [{ score: 0, from: -1 }];
    for (let end = 1; end <= letters.length; end++) {
      best[end] = { score: best[end - 1].score + least, from: end - 1 };
      for (let from = Math.max(0, end - this.longest); from < end; from++) {
        const id = this.spelled.get(letters.slice(from, end).join(""));
        if (id === undefined) continue;
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

  // The text of generated tokens.
  textOf(ids) {
    const { tokens } = this.config;
    const names = ids.map((id) => this.names[id]);
    if (tokens === "bytes") return new TextDecoder().decode(Uint8Array.from(ids));
    if (tokens === "characters") return names.join("");
    if (tokens === "words") return names.map((name) => (name === "<eos>" ? "\n" : `${name} `)).join("");
    const bytes = names.flatMap((name) => {
      const byte = BYTE.exec(name);
      return byte ? [parseInt(byte[1], 16)] : [...encoder.encode(name.replaceAll("\u2581", " "))];
    });
    return new TextDecoder().decode(Uint8Array.from(bytes));
  }
}
