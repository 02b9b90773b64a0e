// PTBTokenizer of tokenizers.py in a page that runs a model (report/live). `rules` are its own.

// A regular expression of Python, whose digits are those of any writing.
function regular(pattern, flags = "u") {
  return new RegExp(pattern.replaceAll("\\d", "\\p{Nd}").replace("\\Z", "$"), flags);
}

export class PTBTokenizer {
  constructor(rules, ids) {
    Object.assign(this, rules);
    this.ids = ids;
    this.joined = new Map(Object.entries(rules.joined));
    this.written = new Map(Object.entries(rules.written));
    const [numbers, decades, leading, trailing, clitics] = rules.patterns;
    this.numbers = regular(`^(?:${numbers})$`);
    this.decades = regular(`^(?:${decades})$`);
    this.leading = regular(`^(?:${leading})`);
    this.trailing = regular(trailing);
    this.clitics = regular(clitics, "iu");
  }

  // The pieces of each word of a line; none of punctuation that the vocabulary lacks.
  split(words) {
    if (words.every((word) => this.ids.has(word))) return words.map((word) => [word]);
    return words.map((word, place) => this.pieces(word, place === words.length - 1));
  }

  pieces(typed, last) {
    if (this.ids.has(typed) && !(last && typed.endsWith("."))) return [typed];
    let word = [...typed].map((letter) => (this.quotes.includes(letter) ? "'" : letter)).join("");
    if (this.lower) word = word.toLowerCase();
    const closed = this.cut(word, this.trailing, false);
    // Nothing but marks, of which the first ones open.
    const marks = !closed.rest && this.leading.test(word);
    const opened = this.cut(marks ? word : closed.rest, this.leading, true);
    if (marks && !this.stands(opened.rest)) return [...opened.cut, ...this.pieces(opened.rest, last)];
    const after = marks ? [] : closed.cut;
    let { rest } = opened;
    if (last && rest.endsWith(".") && this.ids.has(rest.slice(0, -1))) {
      rest = rest.slice(0, -1);
      after.push(...this.mark(".", false));
    }
    while (!this.stands(rest)) {
      const clitic = this.clitics.exec(rest.slice(1))?.[0];
      if (!this.ids.has(clitic)) break;
      after.push(clitic);
      rest = rest.slice(0, -clitic.length);
    }
    return [...opened.cut, ...(rest ? this.unmarked(rest) : []), ...after.reverse()];
  }

  // Cuts marks off one end of a word: the rest, and the marks as the vocabulary has them.
  cut(word, pattern, opening) {
    const cut = [];
    let rest = word;
    while (!this.stands(rest)) {
      const mark = pattern.exec(rest)?.[0];
      if (!mark) break;
      cut.push(...this.mark(mark, opening));
      rest = opening ? rest.slice(mark.length) : rest.slice(0, -mark.length);
    }
    return { rest, cut };
  }

  // Whether a part of a word stays as it is.
  stands(part) {
    if (!part || part.length > this.longest) return false;
    return this.ids.has(part) || this.joined.has(part) || this.numbers.test(part) || this.decades.test(part);
  }

  mark(mark, opening) {
    if (mark === "%" && !this.ids.has(mark) && this.number) return [this.number];
    let names = [mark, this.written.get(mark) ?? mark];
    if (mark === "'" && opening) names = ["`"];
    if (this.double.includes(mark)) names.push(opening ? "``" : "''", '"');
    const known = names.filter((name) => this.ids.has(name));
    if (!known.length && mark.slice(1) === "$") return [mark];
    return known.slice(0, 1);
  }

  unmarked(part) {
    const escaped = part.replaceAll("/", "\\/").replaceAll("*", "\\*");
    const written = [part, escaped].find((name) => this.ids.has(name));
    if (written !== undefined) return [written];
    if (this.number && part.length <= this.longest_number && this.numbers.test(part)) {
      return part.includes("/") && this.ids.has("N\\/N") ? ["N\\/N"] : [this.number];
    }
    const pieces = this.joined.get(part.toLowerCase()) ?? [];
    return pieces.length && pieces.every((piece) => this.ids.has(piece)) ? pieces : [part];
  }
}
