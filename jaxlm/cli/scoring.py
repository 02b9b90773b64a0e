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
LAYOUTS = ("jaxlm", "lm-zoo", "neural-complexity")  # as in `scoring.layouts`, which imports JAX
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
    TOKENIZER,
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
        name: lm.scorer(args.context, top_k=top_k, protocol=protocol, data_dir=args.data_dir)
        if args.adapt is None
        else lm.adaptive(args.adapt, context=args.context, top_k=top_k)
        for name, lm in lms.items()
    }
    format = "csv" if args.csv else args.layout if args.layout == "neural-complexity" else "tsv"
    with _writing(args, format) as write:
        if args.csv:
            _score_table(args, lms, scorings, write)
        else:
            _score_lines(args, lms, scorings, texts, write)
    if args.save_adapted:
        from jaxlm.runs.adoption import keep_model, known_corpus

        ((name, lm),) = lms.items()
        corpus = known_corpus(lm, f"adapted from {args.run} by jaxlm surprisal --adapt {args.adapt:g}")
        keep_model(args.save_adapted, lm.config.replace(epochs=0), scorings[name].params, corpus)


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

    columns, words, unknown = layouts.LAYOUTS[args.layout], 0, 0
    for first, lines, where in _blocks(texts, counted=args.output is not None or not _is_terminal(sys.stdout)):
        options = {"context": args.context, "oov": args.oov, "unit": args.unit or "bits", "eos": args.eos}
        options |= {"tokenizer": args.tokenizer, "first": first, "block": len(lines), "where": where}
        found = {name: next(lm.surprisal_stream(lines, scoring=scorings[name], **options)) for name, lm in lms.items()}
        first_table = next(iter(found.values()))
        write(_joined({name: columns(one) for name, one in found.items()}, "token_id"), header=first == 1)
        words, unknown = words + len(first_table), unknown + int(first_table.oov.sum())
    _say_unknown(unknown, words)


def _score_table(
    args: argparse.Namespace, lms: Models, scorings: Mapping[str, Any], write: Callable[..., object]
) -> None:
    """Writes a row for each displayed word of the sentences of a CSV file, after its other columns."""
    from jaxlm.scoring.stimuli import name_of, read_table

    stimuli = read_table(args.csv, args.column or "Sentence")
    options = {"context": args.context, "oov": args.oov, "unit": args.unit or "bits", "tokenizer": args.tokenizer}
    options["where"] = lambda sentence: f"{name_of(args.csv)}, line {stimuli.lines[sentence - 1]}"
    tables = {name: lm.word_surprisal(stimuli.sentences, scoring=scorings[name], **options) for name, lm in lms.items()}
    own = _joined({name: table.columns() for name, table in tables.items()}, "word_id")
    kept = [f"stimulus.{name}" if name in own else name for name in stimuli.columns]
    if len({*kept, *own}) < len(kept) + len(own):
        raise DataError(f"{args.csv} has a column named as one of the result: rename one of {', '.join(kept)}")
    rows = [stimuli.rows[sentence - 1] for sentence in own["sentence_id"]]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(kept)}
    write({**columns, **own})
    oov = next(iter(tables.values())).oov
    _say_unknown(int(oov.sum()), len(oov))


def _say_unknown(unknown: int, words: int) -> None:
    """Says on standard error how many words were read as `<unk>`, if any; a warning where there are many."""
    from jaxlm.data.unknown import unknown_text, unknown_warning

    if unknown:
        note = f"note: {unknown:,} of {words:,} words ({unknown_text(unknown / words)}) are not in the vocabulary"
        say(unknown_warning(unknown / words, "the text") or note, file=sys.stderr)


def _joined(tables: Mapping[str, Mapping[str, Sequence[Any]]], number: str) -> Mapping[str, Sequence[Any]]:
    """The table of one run, or the tables of several with the columns that number the rows once."""
    from jaxlm.scoring.layouts import side_by_side

    (first, *others) = tables.values()
    return side_by_side(tables, ("sentence_id", number, "word")) if others else first


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
            if not (read := lm.words(line, args.tokenizer)):
                raise DataError(f"{where(sentence)} has no words: remove it")
            found.append(lm.states(read))
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
    _oov("error", "filter"),
    switch("--eos", "count the <eos> after the last word to the sentence"),
    FORMAT,
    *SCORES,
)
def minimal_pairs(args: argparse.Namespace) -> None:
    protocol = given_protocol(args)
    options = {"oov": args.oov, "tokenizer": args.tokenizer, "eos": args.eos, "data_dir": args.data_dir}
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
    _oov("error"),
    FORMAT,
    *SCORES,
)
def syntaxgym(args: argparse.Namespace) -> None:
    protocol = given_protocol(args)
    lm = loaded(args.run, args.checkpoint)
    options = {"oov": args.oov, "tokenizer": args.tokenizer, "data_dir": args.data_dir}
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
