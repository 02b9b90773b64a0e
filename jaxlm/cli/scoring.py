"""The verbs that score texts: `jaxlm surprisal`, `states`, `minimal-pairs` and `syntaxgym`."""

import argparse
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from jaxlm.cli.parsing import add_protocol_flags, given_protocol
from jaxlm.cli.verbs import DATA_DIR, MODEL, TOKENIZER, Adder, argument, loaded, output, pathname, switch, verb
from jaxlm.errors import DataError, JaxlmError
from jaxlm.terminal import printable, say, say_line

if TYPE_CHECKING:
    from jaxlm.scoring.language_model import LanguageModel

FORMAT = argument("--format", choices=("tsv", "csv", "jsonl"), help="of the table (default tsv; csv for --csv)")
SCORES = (DATA_DIR, output("write the table to a file, which appears whole at the end"), add_protocol_flags)
TEXTS = "text, a sentence a line (default, or -: standard input); a directory is one more run"
CONTEXTS = ("sentence", "stream")
BOUNDARY = argument(
    "--boundary",
    choices=("corrected", "published"),
    default="corrected",
    help="of words made of pieces: count that a word begins after them (default), or the pieces alone",
)
PUNCTUATION = argument("--punctuation", choices=("word", "own"), help="counted to its word (default), or a word itself")
LAYOUTS = ("jaxlm", "lm-zoo", "neural-complexity")  # as in `scoring.layouts`, which imports JAX
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
    TOKENIZER,
    PUNCTUATION,
    BOUNDARY,
    argument("--unit", choices=("bits", "nats"), help="of surprisal and entropy (default bits)"),
    argument("--context", choices=CONTEXTS, default="sentence", help="stream: the state passes to the next line"),
    _oov("error", "nan"),
    argument("--top-k", type=int, metavar="K", help="add the K likeliest words in each word's place"),
    switch("--eos", "also a row for the <eos> that ends each line"),
    FORMAT,
    argument("--layout", choices=LAYOUTS, default="jaxlm", help="of another tool's table"),
    argument("--adapt", type=float, metavar="RATE", help="after each sentence take a step of SGD on it"),
    pathname("--save-adapted", "DIR", "keep the adapted model as a run"),
    *SCORES,
)
def surprisal(args: argparse.Namespace) -> None:
    protocol = given_protocol(args)
    runs = [args.run, *(path for path in args.texts if path.is_dir())]
    texts = [path for path in args.texts if not path.is_dir()]
    _check_surprisal(args, runs, texts)
    short = len({path.name for path in runs}) == len(runs)
    lms = {path.name if short else str(path): loaded(path, args.checkpoint) for path in runs}
    top_k = args.top_k or 0
    scorings: dict[str, Any] = {
        name: lm.scorer(args.context, top_k=top_k, protocol=protocol, data_dir=args.data_dir, **_cut(args))
        if args.adapt is None
        else lm.adaptive(args.adapt, context=args.context, top_k=top_k, **_cut(args))
        for name, lm in lms.items()
    }
    format = "csv" if args.csv else args.layout if args.layout == "neural-complexity" else "tsv"
    with _writing(args, format) as write:
        if args.csv:
            _score_table(args, lms, scorings, write)
        else:
            _score_lines(args, lms, scorings, texts, write)
    if args.save_adapted:
        from jaxlm.runs.loading import keep_model, unread_corpus

        ((name, lm),) = lms.items()
        note = f"adapted from {args.run} by jaxlm surprisal --adapt {args.adapt:g}"
        trained, spec = lm.corpus, lm.config.data.corpus
        corpus = unread_corpus(trained["name"], trained["sha256"], lm.vocab, note, spec=spec)
        keep_model(args.save_adapted, lm.config.replace(epochs=0), scorings[name].params, corpus)


def _cut(args: argparse.Namespace) -> dict[str, Any]:
    """How texts are cut into words, and words' boundaries counted."""
    return {"punctuation": args.punctuation or "word", "boundary": args.boundary}


def _check_surprisal(args: argparse.Namespace, runs: Sequence[Path], texts: Sequence[Path]) -> None:
    """Raises JaxlmError where arguments contradict each other."""
    other, kept, adapts = args.layout != "jaxlm", args.save_adapted, args.adapt is not None
    same = kept and args.output and kept.resolve() == args.output.resolve()
    own_table = {"--format": args.format, "--top-k": args.top_k, "--csv": args.csv, "--unit": args.unit == "nats"}
    taken = [flag for flag, given in own_table.items() if given]
    for wrong, message in (
        (args.top_k is not None and args.top_k < 1, f"--top-k must be at least 1; it is {args.top_k}"),
        (other and taken, f"--layout {args.layout} is that tool's own table, in bits: leave {', '.join(taken)} out"),
        (args.csv and texts, f"--csv takes the sentences from {args.csv}: leave {', '.join(map(str, texts))} out"),
        (args.csv and args.top_k, "--csv has a row for each displayed word: leave --top-k out"),
        (args.csv and args.eos, "--csv has a row for each displayed word: leave --eos out"),
        (args.column is not None and not args.csv, "--column names a column of the file of --csv, which is not given"),
        (args.regions and not args.csv, "--regions names a column of the file of --csv, which is not given"),
        (args.spans and not args.csv, "--spans reads columns start and end of the file of --csv, which is not given"),
        (args.spans and args.regions, "--spans and --regions are two ways to cut a sentence: give one of them"),
        (
            args.spans and (adapts or args.protocol != "plain"),
            "--spans is scored plainly: leave --adapt and --protocol out",
        ),
        (args.spans and args.context == "stream", "--spans is scored sentence by sentence: leave --context stream out"),
        (other and args.predictors, f"--layout {args.layout} is that tool's own table: leave --predictors out"),
        (adapts and args.protocol != "plain", f"--adapt {args.adapt} takes no --protocol {args.protocol}"),
        (kept and not adapts, "--save-adapted keeps what --adapt RATE makes, which is not given"),
        (len(runs) > 1 and other, f"--layout takes one run, and {len(runs)} are given"),
        (len(runs) > 1 and kept, f"--save-adapted takes one run, and {len(runs)} are given"),
        (len({*runs}) < len(runs), "a run is given twice: name each of them once"),
        (same, f"--output and --save-adapted are both {args.output}: name two paths"),
        (kept and kept.exists(), f"{kept} exists already: name a new directory"),
    ):
        if wrong:
            raise JaxlmError(message)


def _score_lines(
    args: argparse.Namespace,
    lms: Models,
    scorings: Mapping[str, Any],
    texts: Sequence[Path],
    write: Callable[..., object],
) -> None:
    """Writes a row for each token of lines of text, as they come."""
    from jaxlm.scoring import layouts
    from jaxlm.scoring.surprisal import WordSurprisals

    by_words = args.punctuation or any(lm.vocab.kind != "words" for lm in lms.values())
    by_words = by_words and args.layout == "jaxlm" and not args.top_k
    stream, number = ("word_surprisal_stream", "word_id") if by_words else ("surprisal_stream", "token_id")
    columns = WordSurprisals.columns if by_words else layouts.LAYOUTS[args.layout]
    unknown, extra = Unknown(), _predictors(args, lms)
    for first, lines, where in _blocks(texts, counted=args.output is not None or not _is_terminal(sys.stdout)):
        options = {"context": args.context, "oov": args.oov, "unit": args.unit or "bits", "eos": args.eos, **_cut(args)}
        options |= {"tokenizer": args.tokenizer, "first": first, "block": len(lines), "where": where}
        found = {name: next(getattr(lm, stream)(lines, scoring=scorings[name], **options)) for name, lm in lms.items()}
        tables = {name: {**columns(one), **extra(name, one)} for name, one in found.items()}
        write(layouts.side_by_side(tables, number), header=first == 1)
        unknown.add(next(iter(found.values())))
    unknown.say()


def _score_table(
    args: argparse.Namespace, lms: Models, scorings: Mapping[str, Any], write: Callable[..., object]
) -> None:
    """Writes a row for each displayed word, region or span of the sentences of a CSV file, after its other columns."""
    from jaxlm.scoring.layouts import side_by_side
    from jaxlm.scoring.spans import span_surprisal
    from jaxlm.scoring.stimuli import read_table

    stimuli = read_table(args.csv, args.column or "Sentence")
    options = {"oov": args.oov, "unit": args.unit or "bits", "tokenizer": args.tokenizer, "where": stimuli.where}
    if args.spans:
        spans = [*zip(*map(stimuli.numbers, ("start", "end")), strict=True)]
        tables = {name: span_surprisal(lm, stimuli.sentences, spans, **options) for name, lm in lms.items()}
    else:
        options |= {"context": args.context, **_cut(args)}
        if args.regions:
            cells = stimuli.cells(args.regions)
            options["regions"] = [[part.strip() for part in cell.split("|")] for cell in cells]
        texts = stimuli.sentences
        tables = {name: lm.word_surprisal(texts, scoring=scorings[name], **options) for name, lm in lms.items()}
    extra = _predictors(args, lms)
    own = side_by_side({name: {**table.columns(), **extra(name, table)} for name, table in tables.items()}, "word_id")
    kept = [f"stimulus.{name}" if name in own else name for name in stimuli.columns]
    if len({*kept, *own}) < len(kept) + len(own):
        raise DataError(f"{args.csv} has a column named as one of the result: rename one of {', '.join(kept)}")
    rows = [stimuli.rows[sentence - 1] for sentence in own["sentence_id"]]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(kept)}
    write({**columns, **own})
    unknown = Unknown("critical spans" if args.spans else "regions" if args.regions else "words")
    unknown.add(next(iter(tables.values())))
    unknown.say()


class Unknown:
    """The rows of tables (words, regions or critical spans) with what was read as `<unk>`."""

    def __init__(self, rows: str = "words") -> None:
        self._rows, self._all, self._count, self._named = rows, 0, 0, {}

    def add(self, table: Any) -> None:
        """Counts the rows of one table."""
        from jaxlm.data.tokens import UNK

        rows = [place for place, oov in enumerate(table.oov.tolist()) if oov]
        self._all, self._count = self._all + len(table), self._count + len(rows)
        for place in rows[:MOST_NAMED]:
            words = [table.word[place]]
            if self._rows != "words" and len(tokens := table.tokens[place].split()) == len(words[0].split()):
                words = [word for word, token in zip(words[0].split(), tokens, strict=True) if token == UNK]
            self._named |= dict.fromkeys(words)

    def say(self) -> None:
        """Says on standard error how many there are and which, if any; as a warning where there are many."""
        from jaxlm.data.corpus import unknown_text, unknown_warning

        if self._count:
            share, named = self._count / self._all, [*self._named][:MOST_NAMED]
            said = f"note: {self._count:,} of {self._all:,} words ({unknown_text(share)}) are not in the vocabulary"
            if self._rows == "words":
                said = unknown_warning(share, "the text") or said
            else:
                said = f"warning: {self._count:,} of {self._all:,} {self._rows} have words outside the vocabulary"
            more = ", ..." if self._count > len(named) else ""
            say(printable(f"{said}: {', '.join(word[:MOST_SHOWN] for word in named)}{more}"), file=sys.stderr)


def _predictors(args: argparse.Namespace, lms: Models) -> Callable[[str, Any], dict[str, list]]:
    """What makes the columns of --predictors for a table of one run."""
    if not args.predictors:
        return lambda name, table: {}
    from jaxlm.scoring.frequency import predictors, word_counts

    counts: dict[str, Mapping[str, int]] = {}
    for name, lm in lms.items():
        try:
            counts[name] = word_counts(lm.find_corpus(data_dir=args.data_dir))
        except DataError as error:
            say(printable(f"note: no log frequencies of {name}: {error}"), file=sys.stderr)
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

    lm = loaded(args.run, args.checkpoint)
    path = args.output or Path("states.npz" if str(args.text) == "-" else f"{args.text.stem}.npz")
    words, numbers, found = [], [], []
    for first, lines, where in _blocks([args.text]):
        for sentence, line in enumerate(lines, first):
            read = lm.tokens(line, args.tokenizer)
            found.append(lm.states(read, where=where(sentence)))
            words += read
            numbers += [sentence] * len(read)
    arrays = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    archive = io.BytesIO()  # a device cannot be sought in, as the archive's writer does
    np.savez(archive, allow_pickle=False, words=np.array(words), sentence_id=np.array(numbers), **arrays)
    with _opened(path) as file:
        file.write(archive.getbuffer())
    say_line(f"{path}: {len(words):,} words; {', '.join(arrays)}")


@verb(
    "accuracy on minimal pairs in BLiMP's format",
    *MODEL,
    pathname("pairs", "FILE", "JSON lines with sentence_good and sentence_bad", nargs="+"),
    TOKENIZER,
    PUNCTUATION,
    BOUNDARY,
    _oov("error", "filter"),
    switch("--eos", "count the <eos> after the last word to the sentence"),
    FORMAT,
    *SCORES,
)
def minimal_pairs(args: argparse.Namespace) -> None:
    protocol = given_protocol(args)
    options = {"oov": args.oov, "tokenizer": args.tokenizer, "eos": args.eos, "data_dir": args.data_dir, **_cut(args)}
    found = loaded(args.run, args.checkpoint).minimal_pairs(args.pairs, protocol=protocol, **options)
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
    TOKENIZER,
    PUNCTUATION,
    BOUNDARY,
    _oov("error"),
    FORMAT,
    *SCORES,
)
def syntaxgym(args: argparse.Namespace) -> None:
    protocol = given_protocol(args)
    lm = loaded(args.run, args.checkpoint)
    options = {"oov": args.oov, "tokenizer": args.tokenizer, "data_dir": args.data_dir, **_cut(args)}
    rows: list[tuple[Any, ...]] = []
    for result in [lm.syntaxgym(path, protocol=protocol, **options) for path in args.suites]:
        name, items, oov = result.suite.name, result.items, sum(item.oov for item in result.items)
        for place, formula in enumerate(result.suite.predictions):
            rows += [(name, item.number, formula.text, int(item.predictions[place]), item.oov) for item in items]
            rows.append((name, "all", formula.text, result.by_prediction[place], oov))
        rows.append((name, "all", "every prediction", result.accuracy, oov))
    _write_rows(args, ("suite", "item", "prediction", "correct", "oov"), rows)


def _write_rows(args: argparse.Namespace, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with _writing(args) as write:
        write(dict(zip(names, zip(*rows, strict=True), strict=True)))


def _blocks(texts: Sequence[Path], counted: bool = False) -> Iterator[tuple[int, list[str], Callable[[int], str]]]:
    """Lines as they come, from files one after the other: the number of the first, the lines, and what names one."""
    from jaxlm.scoring.stimuli import lines_of, name_of, open_text

    done, counted = 0, counted and _is_terminal(sys.stderr)
    for path in texts or [Path("-")]:
        if path.suffix.lower() in (".csv", ".tsv"):
            how = f"give it as --csv {path} --column NAME, or write its sentences to a file of another name, one a line"
            raise JaxlmError(f"{path} is a table: {how}")
        name = name_of(path)
        with open_text(path) as file:
            before = done
            for lines in lines_of(file, name):
                yield done + 1, lines, lambda sentence, before=before, name=name: f"{name}, line {sentence - before}"
                done += len(lines)
                if counted:
                    print(f"\r{done:,} sentences", end="", file=sys.stderr, flush=True)
    if counted:
        print(file=sys.stderr)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file that appears whole at the end, as `files.output` has it. Raises JaxlmError if it cannot be written."""
    from jaxlm import files

    try:
        with files.output(path) as file:
            yield file
    except OSError as error:
        raise JaxlmError(f"{path} cannot be written: {files.reason(error)}") from None


@contextmanager
def _writing(args: argparse.Namespace, format: str = "tsv") -> Iterator[Callable[..., object]]:
    """A function that writes columns (with their names, or header=False) to --output or standard output, by --format.

    Control characters become escapes, except in CSV that no terminal shows.
    """
    from jaxlm.scoring.layouts import table_text

    format = args.format or format
    raw = format == "csv" and (args.output is not None or not _is_terminal(sys.stdout))
    clean = str if raw else partial(printable, keep_newlines=format == "csv")
    text = partial(table_text, format=format, clean=clean)
    if args.output is None:
        yield lambda *columns, **options: _print(text(*columns, **options))
        return
    with _opened(args.output) as file:
        yield lambda *columns, **options: file.write(text(*columns, **options).encode("utf-8", "surrogateescape"))


def _print(text: str) -> None:
    if sys.stdout is not None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=_is_terminal(sys.stdout))


def _is_terminal(file: Any) -> bool:
    return file is not None and file.isatty()
