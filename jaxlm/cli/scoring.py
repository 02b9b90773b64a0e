"""The verbs that score texts: `jaxlm surprisal`, `states`, `minimal-pairs` and `syntaxgym`."""

import argparse
import bisect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.output import cleaner, written
from jaxlm.cli.parsing import add_protocol_flags, given_protocol, some_path
from jaxlm.cli.verbs import CHECKPOINT, DATA_DIR, RUN, argument, loaded, output, verb
from jaxlm.errors import DataError, JaxlmError, RunDirError

if TYPE_CHECKING:
    from jaxlm.scoring.language_model import LanguageModel

FORMATS = ("tsv", "csv", "jsonl")
FORMAT = argument("--format", choices=FORMATS, help="of the table (default tsv)")
OUTPUT = output("write the table to a file, which appears whole at the end")


def _tokenizer(default: str) -> Callable:
    return argument(
        "--tokenizer",
        choices=("none", "ptb"),
        default=None,
        help=f"words as they stand, or as in Penn Treebank (ptb: punctuation and clitics apart, numbers as "
        f"its files have them) (default {default})",
    )


@verb(
    "the surprisal of every word of a text",
    RUN,
    CHECKPOINT,
    argument(
        "texts",
        nargs="*",
        type=some_path,
        metavar="FILE",
        default=[],
        help="text, a sentence a line (default, or -: standard input); a directory is one more run, with "
        "columns of its own",
    ),
    argument(
        "--csv",
        type=some_path,
        metavar="FILE",
        help="stimuli in CSV: all other columns are kept, with a row for each displayed word",
    ),
    argument("--column", metavar="NAME", help="the column of sentences in --csv (default Sentence)"),
    _tokenizer("none; ptb for --csv"),
    argument("--unit", choices=("bits", "nats"), help="of surprisal and entropy (default bits)"),
    argument(
        "--context",
        choices=("sentence", "stream"),
        default="sentence",
        help="pass on the state from line to line, or begin each from zeros (default sentence)",
    ),
    argument(
        "--oov",
        choices=("unk", "error", "nan"),
        default="unk",
        help="words outside the vocabulary: read as <unk>, refuse, or read as <unk> with a surprisal of NaN "
        "(default unk)",
    ),
    argument("--top-k", type=int, metavar="K", help="add the K likeliest words in each word's place"),
    argument("--eos", action="store_true", help="also a row for the <eos> that ends each line"),
    argument("--format", choices=FORMATS, help="of the table (default tsv; csv for --csv)"),
    argument(
        "--layout",
        choices=("jaxlm", "lm-zoo", "neural-complexity"),
        default="jaxlm",
        help="the header and numbering of another tool (default jaxlm)",
    ),
    argument("--adapt", type=float, metavar="RATE", help="after each sentence take a step of SGD on it"),
    argument("--save-adapted", type=some_path, metavar="DIR", help="keep the adapted model as a run"),
    DATA_DIR,
    OUTPUT,
    add_protocol_flags,
)
def surprisal(args: argparse.Namespace) -> None:
    protocol = given_protocol(args)
    _check_surprisal(args)
    runs = [args.run, *(path for path in args.texts if path.is_dir())]
    texts = [path for path in args.texts if not path.is_dir()]
    if args.csv and texts:
        raise JaxlmError(f"--csv takes the sentences from {args.csv}, and {texts[0]} is given too: leave one out")
    if len(runs) > 1 and (args.layout != "jaxlm" or args.save_adapted):
        flag = "--save-adapted" if args.save_adapted else "--layout"
        raise JaxlmError(f"{flag} takes one run, and {len(runs)} are given")
    short = len({path.name for path in runs}) == len(runs)
    names = [path.name if short else str(path) for path in runs]
    if len(set(names)) < len(names):
        raise JaxlmError(f"the run {next(name for name in names if names.count(name) > 1)} is given twice")
    lms = {name: loaded(run, args.checkpoint) for name, run in zip(names, runs, strict=True)}
    top_k, adapt = args.top_k or 0, args.adapt
    scorings = {
        name: lm.scorer(args.context, top_k, protocol=protocol, data_dir=args.data_dir)
        if adapt is None
        else lm.adaptive(adapt, context=args.context, top_k=top_k)
        for name, lm in lms.items()
    }
    write_table = _stimuli if args.csv else _lines
    with written(args.output) as write:
        write_table(args, lms, scorings, texts, write)
    if args.save_adapted:
        _save(next(iter(lms.values())).with_params(next(iter(scorings.values())).params), args)  # pyright: ignore


@verb(
    "the state of every layer after each word, in an .npz file",
    RUN,
    CHECKPOINT,
    argument("text", type=some_path, metavar="FILE", help="text, a sentence a line (-: standard input)"),
    output("the file to write (default: the text's name with .npz)"),
)
def states(args: argparse.Namespace) -> None:
    import numpy as np

    from jaxlm import files
    from jaxlm.terminal import printable, say

    lm = loaded(args.run, args.checkpoint)
    path = args.output or Path("states.npz" if str(args.text) == "-" else f"{args.text.stem}.npz")
    words, numbers, found = [], [], []
    for first, lines, where in _blocks([args.text]):
        for sentence, line in enumerate(lines, first):
            if not line.split():
                raise DataError(f"{where(sentence)} has no words: remove it")
            found.append(lm.states(line))
            words += line.split()
            numbers += [sentence] * len(line.split())
    arrays = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    try:
        with files.output(path) as file:
            np.savez(file, allow_pickle=False, words=np.array(words), sentence_id=np.array(numbers), **arrays)
    except OSError as error:
        raise JaxlmError(f"{path} cannot be written: {files.reason(error)}") from None
    say(printable(f"{path}: {len(words):,} words; {', '.join(arrays)}"))


@verb(
    "accuracy on minimal pairs in BLiMP's format",
    RUN,
    CHECKPOINT,
    argument(
        "pairs",
        nargs="+",
        type=some_path,
        metavar="FILE.jsonl",
        help="a pair a line: sentence_good, sentence_bad, and perhaps UID and linguistics_term",
    ),
    _tokenizer("ptb"),
    argument(
        "--oov",
        choices=("unk", "error", "filter"),
        default="unk",
        help="read unknown words as <unk>, refuse them, or leave out pairs that differ in nothing else (default unk)",
    ),
    argument("--eos", action="store_true", help="count the <eos> after the last word to the sentence"),
    FORMAT,
    DATA_DIR,
    OUTPUT,
    add_protocol_flags,
)
def minimal_pairs(args: argparse.Namespace) -> None:
    protocol = given_protocol(args)
    found = loaded(args.run, args.checkpoint).minimal_pairs(
        args.pairs,
        oov=args.oov,
        tokenizer=args.tokenizer or "ptb",
        eos=args.eos,
        protocol=protocol,
        data_dir=args.data_dir,
    )
    rows = [*found.by_uid, found.total]
    _write_table(
        args,
        {
            "UID": [row.name for row in rows],
            "linguistics_term": [row.term for row in rows],
            "pairs": [row.n for row in rows],
            "accuracy": [row.accuracy for row in rows],
            "low_95": [row.interval[0] for row in rows],
            "high_95": [row.interval[1] for row in rows],
            "ties": [row.ties for row in rows],
            "oov_only": [row.alike for row in rows],
            "left_out": [row.left_out for row in rows],
        },
    )


@verb(
    "results of SyntaxGym test suites",
    RUN,
    CHECKPOINT,
    argument("suites", nargs="+", type=some_path, metavar="SUITE.json"),
    _tokenizer("ptb"),
    argument(
        "--oov",
        choices=("unk", "error"),
        default="unk",
        help="read unknown words as <unk>, or refuse them (default unk)",
    ),
    FORMAT,
    DATA_DIR,
    OUTPUT,
    add_protocol_flags,
)
def syntaxgym(args: argparse.Namespace) -> None:
    protocol = given_protocol(args)
    lm = loaded(args.run, args.checkpoint)
    results = [
        lm.syntaxgym(path, oov=args.oov, tokenizer=args.tokenizer or "ptb", protocol=protocol, data_dir=args.data_dir)
        for path in args.suites
    ]
    rows: list[tuple[Any, ...]] = []
    for result in results:
        for place, formula in enumerate(result.suite.predictions):
            rows += [
                (result.suite.name, item.number, formula.text, int(item.predictions[place]), item.oov)
                for item in result.items
            ]
            rows.append(
                (
                    result.suite.name,
                    "all",
                    formula.text,
                    result.by_prediction[place],
                    sum(item.oov for item in result.items),
                )
            )
        rows.append(
            (result.suite.name, "all", "every prediction", result.accuracy, sum(item.oov for item in result.items))
        )
    columns = zip(*rows, strict=True)
    _write_table(args, dict(zip(("suite", "item", "prediction", "correct", "oov"), columns, strict=True)))


def _check_surprisal(args: argparse.Namespace) -> None:
    """Raises JaxlmError where flags contradict each other."""
    if args.top_k is not None and args.top_k < 1:
        raise JaxlmError(f"--top-k must be at least 1; it is {args.top_k}")
    if args.layout != "jaxlm":
        for flag, given in (
            ("--format", args.format),
            ("--top-k", args.top_k),
            ("--csv", args.csv),
            ("--unit", args.unit if args.unit == "nats" else None),
        ):
            if given:
                raise JaxlmError(f"--layout {args.layout} is that tool's own table, in bits: leave {flag} out")
    if args.csv and (args.top_k or args.eos):
        raise JaxlmError(f"--csv has a row for each displayed word: leave {'--eos' if args.eos else '--top-k'} out")
    if args.column is not None and not args.csv:
        raise JaxlmError("--column names a column of the file of --csv, which is not given")
    if args.adapt is not None and args.protocol != "plain":
        raise JaxlmError(
            f"--adapt {args.adapt:g} learns from each sentence of a plain model, and --protocol "
            f"{args.protocol} is given: leave one out"
        )
    if args.save_adapted:
        if args.adapt is None:
            raise JaxlmError("--save-adapted keeps what --adapt RATE makes, which is not given")
        if args.save_adapted.exists():
            raise RunDirError(f"{args.save_adapted} exists already: name a new directory")


def _lines(
    args: argparse.Namespace,
    lms: "dict[str, LanguageModel]",
    scorings: dict[str, Any],
    texts: Sequence[Path],
    write: Callable[[str], None],
) -> None:
    """A row for each token of lines of text, as they come."""
    from jaxlm.scoring import layouts

    table = layouts.TextTable(args.format or "tsv", cleaner(args.output, args.format or "tsv"))
    cells = {
        "lm-zoo": (layouts.LM_ZOO, layouts.lm_zoo_rows, "\t"),
        "neural-complexity": (layouts.NEURAL_COMPLEXITY, layouts.neural_complexity_rows, " "),
    }.get(args.layout)
    begun = False
    for first, lines, where in _blocks(texts, progress=args.output is not None or not _shown()):
        found = {
            name: next(
                lm.surprisal_stream(
                    lines,
                    context=args.context,
                    oov=args.oov,
                    unit=args.unit or "bits",
                    tokenizer=args.tokenizer or "none",
                    eos=args.eos,
                    first=first,
                    block=len(lines),
                    scoring=scorings[name],
                    where=where,
                )
            )
            for name, lm in lms.items()
        }
        if cells is not None:
            header, rows, separator = cells
            if not begun:
                write(separator.join(header) + "\n")
            clean = cleaner(args.output, "tsv")
            write("".join(separator.join(map(clean, row)) + "\n" for row in rows(next(iter(found.values())))))
        else:
            columns = {name: one.columns() for name, one in found.items()}
            joined = (
                next(iter(columns.values()))
                if len(lms) == 1
                else layouts.side_by_side(columns, ("sentence_id", "token_id", "word"))
            )
            write(("" if begun else table.header(list(joined))) + "".join(table.rows(joined)))
        begun = True


def _stimuli(
    args: argparse.Namespace,
    lms: "dict[str, LanguageModel]",
    scorings: dict[str, Any],
    _: Sequence[Path],
    write: Callable[[str], None],
) -> None:
    """A row for each displayed word of the sentences of a CSV file, after its other columns."""
    from jaxlm.scoring import layouts
    from jaxlm.scoring.stimuli import read_table

    column = args.column or "Sentence"
    stimuli = read_table(args.csv, column)

    def where(sentence: int) -> str:
        return f"{args.csv}, line {stimuli.lines[sentence - 1]}"

    found = {
        name: lm.word_surprisal(
            stimuli.sentences,
            tokenizer=args.tokenizer or "ptb",
            context=args.context,
            oov=args.oov,
            unit=args.unit or "bits",
            scoring=scorings[name],
            where=where,
        ).columns()
        for name, lm in lms.items()
    }
    own = next(iter(found.values()))
    if len(lms) > 1:
        own = layouts.side_by_side(found, ("sentence_id", "word_id", "word"))
    if taken := [name for name in stimuli.columns if name in own]:
        raise DataError(f"{args.csv} has a column {taken[0]!r}, and so has the result: rename it")
    rows = [stimuli.rows[sentence - 1] for sentence in own["sentence_id"]]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(stimuli.columns)} | dict(own)
    table = layouts.TextTable(args.format or "csv", cleaner(args.output, args.format or "csv"))
    write(table.header(list(columns)) + "".join(table.rows(columns)))


def _write_table(args: argparse.Namespace, columns: dict[str, Sequence[Any]]) -> None:
    from jaxlm.scoring.layouts import TextTable

    table = TextTable(args.format or "tsv", cleaner(args.output, args.format or "tsv"))
    with written(args.output) as write:
        write(table.header(list(columns)) + "".join(table.rows(columns)))


def _blocks(texts: Sequence[Path], progress: bool = False) -> Iterator[tuple[int, list[str], Callable[[int], str]]]:
    """Lines as they come, from files one after the other: the number of the first, the lines, and what names one."""
    from jaxlm.scoring.stimuli import lines_of, open_text

    starts, names, done = [], [], 0

    def where(sentence: int) -> str:
        place = bisect.bisect_right(starts, sentence) - 1
        return f"{names[place]}, line {sentence - starts[place] + 1}"

    with ExitStack() as held:
        advance = held.enter_context(_progress()) if progress and _shown(sys.stderr) else lambda _: None
        for path in texts or [Path("-")]:
            standard = str(path) == "-"
            if standard and sys.stdin is None:
                raise DataError("standard input is closed: name a file, or use a pipe")
            starts.append(done + 1)
            names.append("standard input" if standard else str(path))
            file = sys.stdin.buffer if standard else held.enter_context(open_text(path))
            for lines in lines_of(file, names[-1]):
                yield done + 1, lines, where
                done += len(lines)
                advance(len(lines))


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """A line on standard error that counts sentences."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.completed:,.0f} sentences"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda count: progress.advance(task, count)


def _shown(file: Any = None) -> bool:
    """Whether what is printed appears on a terminal."""
    file = sys.stdout if file is None else file
    return file is not None and file.isatty()


def _save(lm: "LanguageModel", args: argparse.Namespace) -> None:
    """Keeps an adapted model as a run of no window; the text that RUN was trained on need not be at hand."""
    from jaxlm.runs.adoption import keep_model, known_corpus

    corpus = known_corpus(lm, f"adapted from {args.run} by jaxlm surprisal --adapt {args.adapt:g}")
    keep_model(args.save_adapted, lm.config.replace(epochs=0), lm.params, corpus)
