"""The verbs that score texts: `jaxlm surprisal`, `states`, `minimal-pairs` and `syntaxgym`."""

import argparse
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.parsing import add_protocol_flags, given_protocol
from jaxlm.cli.tables import LAYOUTS, Columns, side_by_side, table_text
from jaxlm.cli.verbs import DATA_DIR, MODEL, TOKENIZER, Adder, argument, loaded, output, pathname, switch, verb
from jaxlm.errors import DataError, JaxlmError
from jaxlm.terminal import is_terminal, printable, say, say_line

if TYPE_CHECKING:
    from jaxlm.scoring.language_model import LanguageModel
    from jaxlm.scoring.stimuli import StimulusTable

FORMAT = argument("--format", choices=("tsv", "csv", "jsonl"), help="of the table (default tsv; csv for --csv)")
SCORES = (FORMAT, DATA_DIR, output("write the table to a file, which appears whole at the end"), add_protocol_flags)
TEXTS = "text, a sentence a line (default, or -: standard input); a directory is one more run"
_BOUNDARY = "of words made of pieces: count that a word begins after them (default), or the pieces alone"
WORDS = (
    TOKENIZER,
    argument("--punctuation", choices=("word", "own"), help="counted to its word (default), or a word itself"),
    argument("--boundary", choices=("corrected", "published"), default="corrected", help=_BOUNDARY),
)
NEEDS = {"column": "csv", "regions": "csv", "spans": "csv", "save_adapted": "adapt"}
EXCLUDES = {  # an argument of `surprisal` -> why, and what it leaves no room for
    "layout": ("is that tool's table of one run, in bits", ("format", "top_k", "csv", "unit", "predictors", "runs")),
    "csv": ("names the sentences and has a row for each displayed word", ("texts", "top_k", "eos")),
    "spans": ("has one row a sentence, scored plainly and by itself", ("regions", "adapt", "protocol", "context")),
    "adapt": ("learns by the model's own probabilities", ("protocol",)),
    "save_adapted": ("keeps one model", ("runs",)),
}
MOST_NAMED, MOST_SHOWN = 10, 40  # unknown words, and characters of each
Models = Mapping[str, "LanguageModel"]  # by the name of the run


def _oov(*choices: str) -> Adder:
    what = {"error": "refuse them", "nan": "give them NaN", "filter": "leave out pairs that differ in nothing else"}
    others = " or ".join(what[choice] for choice in choices)
    return argument("--oov", choices=("unk", *choices), default="unk", help=f"read unknown words as <unk>, or {others}")


@verb(
    "the surprisal of every word of a text",
    *MODEL,
    pathname("texts", "FILE", TEXTS, nargs="*", default=[]),
    pathname("--csv", "FILE", "stimuli in CSV (-: standard input), a row a word"),
    argument("--column", metavar="NAME", help="the column of sentences in --csv (default Sentence)"),
    argument("--regions", metavar="NAME", help="a column of --csv with each sentence's regions, | between: a row each"),
    argument("--spans", choices=("characters",), help="a row for the characters from start to end (columns of --csv)"),
    switch("--predictors", "add length and log frequency in the training text"),
    *WORDS,
    argument("--unit", choices=("bits", "nats"), default="bits", help="of surprisal and entropy (default bits)"),
    argument("--context", choices=("sentence", "stream"), default="sentence", help="stream: pass the state on"),
    _oov("error", "nan"),
    argument("--top-k", type=int, metavar="K", help="add the K likeliest words in each word's place"),
    switch("--eos", "also a row for the <eos> that ends each line"),
    argument("--layout", choices=[*LAYOUTS], default="jaxlm", help="of another tool's table"),
    argument("--adapt", type=float, metavar="RATE", help="after each sentence take a step of SGD on it"),
    pathname("--save-adapted", "DIR", "keep the adapted model as a run"),
    *SCORES,
)
def surprisal(args: argparse.Namespace) -> None:
    how = _how(args) | {"context": args.context, "unit": args.unit, "eos": args.eos, "top_k": args.top_k or 0}
    runs = [args.run, *(path for path in args.texts if path.is_dir())]
    texts = [path for path in args.texts if not path.is_dir()]
    _check_surprisal(args, runs, texts)
    short = len({path.name for path in runs}) == len(runs)
    lms = {path.name if short else str(path): loaded(path, args.checkpoint) for path in runs}
    scorings: dict[str, Any] = {
        name: lm.scorer(**how) if args.adapt is None else lm.adaptive(args.adapt, **how) for name, lm in lms.items()
    }

    from jaxlm.scoring.stimuli import read_table

    stimuli = read_table(args.csv, args.column or "Sentence") if args.csv else None
    extra = _predictors(args, lms)
    unknown = Unknown("critical spans" if args.spans else "regions" if args.regions else "words")
    with _writing(args, "csv" if stimuli else args.layout) as write:
        for place, tables in enumerate(_tables(args, lms, scorings, stimuli or texts, how)):
            columns = {name: {**LAYOUTS[args.layout](one), **extra(name, one)} for name, one in tables.items()}
            own = side_by_side(columns)
            write({**_kept(stimuli, own), **own} if stimuli else own, place == 0)
            unknown.add(next(iter(tables.values())))
    unknown.say()
    if args.save_adapted:
        from jaxlm.runs.loading import keep_model, unread_corpus

        ((name, lm),) = lms.items()
        note = f"adapted from {args.run} by jaxlm surprisal --adapt {args.adapt:g}"
        trained, spec = lm.corpus, lm.config.data.corpus
        corpus = unread_corpus(trained["name"], trained["sha256"], lm.vocab, note, spec=spec)
        keep_model(args.save_adapted, lm.config.replace(epochs=0), scorings[name].params, corpus)


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """The options of scoring that verbs share. Raises JaxlmError."""
    shared = {name: getattr(args, name) for name in ("oov", "tokenizer", "boundary", "data_dir")}
    return {**shared, "punctuation": args.punctuation or "word", "protocol": given_protocol(args)}


def _check_surprisal(args: argparse.Namespace, runs: Sequence[Path], texts: Sequence[Path]) -> None:
    """Raises JaxlmError where arguments contradict each other."""
    defaults = {"layout": "jaxlm", "protocol": "plain", "context": "sentence", "unit": "bits", "texts": args.texts}
    given = {
        name: f"--{name.replace('_', '-')}"
        for name, value in vars(args).items()
        if value is not None and value is not False and value != defaults.get(name)
    }
    given |= {"texts": ", ".join(map(str, texts))} if texts else {}
    given |= {"runs": ", ".join(map(str, runs[1:]))} if runs[1:] else {}
    for name, other in NEEDS.items():
        if name in given and other not in given:
            raise JaxlmError(f"{given[name]} needs --{other}, which is not given")
    for name, (why, others) in EXCLUDES.items():
        if name in given and (taken := [given[other] for other in others if other in given]):
            raise JaxlmError(f"{given[name]} {why}: leave {', '.join(taken)} out")
    kept = args.save_adapted
    if args.top_k is not None and args.top_k < 1:
        raise JaxlmError(f"--top-k must be at least 1; it is {args.top_k}")
    if len({*runs}) < len(runs):
        raise JaxlmError("a run is given twice: name each of them once")
    if kept and args.output and kept.resolve() == args.output.resolve():
        raise JaxlmError(f"--output and --save-adapted are both {args.output}: name two paths")
    if kept and kept.exists():
        raise JaxlmError(f"{kept} exists already: name a new directory")


def _tables(
    args: argparse.Namespace,
    lms: Models,
    scorings: Mapping[str, Any],
    texts: "StimulusTable | Sequence[Path]",
    how: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """The tables of lines of text as they come, or the table of all stimuli, by the runs' names."""

    def scored(method: str, sentences: list[str], **options: Any) -> dict[str, Any]:
        options = {**how, **options}
        return {name: getattr(lm, method)(sentences, scoring=scorings[name], **options) for name, lm in lms.items()}

    if isinstance(texts, Sequence):
        by_words = args.punctuation or any(lm.vocab.kind != "words" for lm in lms.values())
        method = "word_surprisal" if by_words and args.layout == "jaxlm" and not args.top_k else "surprisal"
        for first, lines, where in _blocks(texts, counted=args.output is not None or not is_terminal(sys.stdout)):
            yield scored(method, lines, first=first, block=len(lines), where=where)
    elif args.spans:
        from jaxlm.scoring.reading_times import span_surprisal

        spans = [*zip(*map(texts.numbers, ("start", "end")), strict=True)]
        options = {name: how[name] for name in ("oov", "unit", "tokenizer")}
        yield {name: span_surprisal(lm, texts.sentences, spans, texts.where, **options) for name, lm in lms.items()}
    else:
        cells = texts.cells(args.regions) if args.regions else None
        regions = cells and [[part.strip() for part in cell.split("|")] for cell in cells]
        yield scored("word_surprisal", texts.sentences, regions=regions, where=texts.where)


def _kept(stimuli: "StimulusTable", own: Columns) -> Columns:
    """The other columns of the stimuli, a row for each row of the result. Raises DataError where names collide."""
    kept = {f"stimulus.{name}" if name in own else name: cells for name, cells in stimuli.columns.items()}
    if len({*kept, *own}) < len(stimuli.columns) + len(own):
        raise DataError(f"{stimuli.name} has a column named as one of the result: rename one of {', '.join(kept)}")
    return {name: [cells[sentence - 1] for sentence in own["sentence_id"]] for name, cells in kept.items()}


class Unknown:
    """The rows of tables (words, regions or critical spans) with what was read as `<unk>`."""

    def __init__(self, rows: str = "words") -> None:
        self._rows, self._all, self._count, self._named = rows, 0, 0, {}

    def add(self, table: Any) -> None:
        """Counts the rows of one table."""
        from jaxlm.data.tokens import UNK

        self._all, self._count = self._all + len(table), self._count + int(table.oov.sum())
        for place in table.oov.nonzero()[0][:MOST_NAMED]:
            words = [table.word[place]]
            if self._rows != "words" and len(tokens := table.tokens[place].split()) == len(words[0].split()):
                words = [word for word, token in zip(words[0].split(), tokens, strict=True) if token == UNK]
            self._named |= dict.fromkeys(words)

    def say(self) -> None:
        """Says on standard error how many there are and which, if any; as a warning where there are many."""
        from jaxlm.data.corpus import unknown_text, unknown_warning

        if not self._count:
            return
        share, named = self._count / self._all, [*self._named][:MOST_NAMED]
        if self._rows != "words":
            said = f"warning: {self._count:,} of {self._all:,} {self._rows} have words outside the vocabulary"
        elif not (said := unknown_warning(share, "the text")):
            said = f"note: {self._count:,} of {self._all:,} words ({unknown_text(share)}) are not in the vocabulary"
        more = ", ..." if self._count > len(named) else ""
        say_line(f"{said}: {', '.join(word[:MOST_SHOWN] for word in named)}{more}", sys.stderr)


def _predictors(args: argparse.Namespace, lms: Models) -> Callable[[str, Any], dict[str, list]]:
    """What makes the columns of --predictors for a table of one run."""
    if not args.predictors:
        return lambda name, table: {}
    from jaxlm.scoring.reading_times import predictors, word_counts

    counts: dict[str, Mapping[str, int]] = {}
    for name, lm in lms.items():
        try:
            counts[name] = word_counts(lm.find_corpus(data_dir=args.data_dir))
        except DataError as error:
            say_line(f"note: no log frequencies of {name}: {error}", sys.stderr)
    return lambda name, table: predictors(lms[name], table, counts.get(name))


@verb(
    "the state of every layer after each word, in an .npz file",
    *MODEL,
    pathname("text", "FILE", "text, a sentence a line (-: standard input)"),
    TOKENIZER,
    output("the file to write (default: the text's name with .npz)"),
)
def states(args: argparse.Namespace) -> None:
    import numpy as np

    from jaxlm import files

    lm = loaded(args.run, args.checkpoint)

    from jaxlm.scoring.surprisal import SurprisalOptions

    path = args.output or Path("states.npz" if str(args.text) == "-" else f"{args.text.stem}.npz")
    read, words, numbers, found = lm.sentence_reader(SurprisalOptions(tokenizer=args.tokenizer)), [], [], []
    for first, lines, where in _blocks([args.text]):
        for sentence, line in enumerate(lines, first):
            tokens = read(line, "unk", where(sentence)).tokens
            found.append(lm.states(tokens, where=where(sentence)))
            words += tokens
            numbers += [sentence] * len(tokens)
    arrays = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    archive = io.BytesIO()  # a device cannot be sought in, as the archive's writer does
    np.savez(archive, allow_pickle=False, words=np.array(words), sentence_id=np.array(numbers), **arrays)
    with files.explained(JaxlmError, f"{path} cannot be written"), files.output(path) as file:
        file.write(archive.getbuffer())
    say_line(f"{path}: {len(words):,} words; {', '.join(arrays)}")


@verb(
    "accuracy on minimal pairs in BLiMP's format",
    *MODEL,
    pathname("pairs", "FILE", "JSON lines with sentence_good and sentence_bad", nargs="+"),
    *WORDS,
    _oov("error", "filter"),
    switch("--eos", "count the <eos> after the last word to the sentence"),
    *SCORES,
)
def minimal_pairs(args: argparse.Namespace) -> None:
    how = _how(args)
    found = loaded(args.run, args.checkpoint).minimal_pairs(args.pairs, eos=args.eos, **how)
    names = ("UID", "linguistics_term", "pairs", "accuracy", "low_95", "high_95", "ties", "oov_only", "left_out")
    rows = [
        (row.name, row.term, row.n, row.accuracy, *row.interval, row.ties, row.alike, row.left_out)
        for row in (*found.by_uid, found.total)
    ]
    _write_rows(args, names, rows)


@verb(
    "results of SyntaxGym test suites",
    *MODEL,
    pathname("suites", "SUITE.json", "test suites in SyntaxGym's format", nargs="+"),
    *WORDS,
    _oov("error"),
    *SCORES,
)
def syntaxgym(args: argparse.Namespace) -> None:
    how, lm, rows = _how(args), loaded(args.run, args.checkpoint), []
    for result in [lm.syntaxgym(path, **how) for path in args.suites]:
        name, items, oov = result.suite.name, result.items, sum(item.oov for item in result.items)
        for place, formula in enumerate(result.suite.predictions):
            rows += [(name, item.number, formula, int(item.predictions[place]), item.oov) for item in items]
            rows.append((name, "all", formula, result.by_prediction[place], oov))
        rows.append((name, "all", "every prediction", result.accuracy, oov))
    _write_rows(args, ("suite", "item", "prediction", "correct", "oov"), rows)


def _write_rows(args: argparse.Namespace, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with _writing(args) as write:
        write(dict(zip(names, zip(*rows, strict=True), strict=True)), True)


def _blocks(texts: Sequence[Path], counted: bool = False) -> Iterator[tuple[int, list[str], Callable[[int], str]]]:
    """Lines as they come, from files one after the other: the number of the first, the lines, and what names one."""
    from jaxlm.scoring.stimuli import lines_of, source

    done, counted = 0, counted and is_terminal(sys.stderr)
    for path in texts or [Path("-")]:
        if path.suffix.lower() in (".csv", ".tsv"):
            how = f"give it as --csv {path} --column NAME, or write its sentences to a file of another name, one a line"
            raise JaxlmError(f"{path} is a table: {how}")
        before, name = done, source(path)
        for lines in lines_of(path):
            yield done + 1, lines, lambda sentence, before=before, name=name: f"{name}, line {sentence - before}"
            done += len(lines)
            if counted:
                print(f"\r{done:,} sentences", end="", file=sys.stderr, flush=True)
    if counted:
        print(file=sys.stderr)


@contextmanager
def _writing(args: argparse.Namespace, layout: str = "jaxlm") -> Iterator[Callable[[Columns, bool], object]]:
    """A function that writes columns, with their names or without, to --output or standard output, by --format.

    A file appears whole at the end. Control characters become escapes, except in CSV that no terminal shows.
    """
    terminal, format = args.output is None and is_terminal(sys.stdout), args.format or layout
    clean = str if format == "csv" and not terminal else partial(printable, keep_newlines=format == "csv")
    text = partial(table_text, format=format, clean=clean)
    if args.output is None:
        yield lambda columns, header: say(text(columns, header), end="", exact=True, flush=terminal)
        return

    from jaxlm import files

    with files.explained(JaxlmError, f"{args.output} cannot be written"), files.output(args.output) as file:
        yield lambda columns, header: file.write(text(columns, header).encode("utf-8", "surrogateescape"))
