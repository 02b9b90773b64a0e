"""The verbs that score texts: `jaxlm surprisal`, `states`, `minimal-pairs` and `syntaxgym`."""

import argparse
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from jaxlm.cli.parsing import add_protocol_flags, given_protocol, whole
from jaxlm.cli.tables import LAYOUTS, Columns, side_by_side, table_text
from jaxlm.cli.using import say_unknown
from jaxlm.cli.verbs import (
    DATA_DIR,
    MODEL,
    TOKENIZER,
    Adder,
    argument,
    loaded,
    output,
    pathname,
    switch,
    verb,
)
from jaxlm.errors import DataError, JaxlmError, RunDirError
from jaxlm.terminal import is_terminal, printable, say, say_line

if TYPE_CHECKING:
    from jaxlm.scoring.language_model import LanguageModel
    from jaxlm.scoring.stimuli import StimulusTable

FORMAT = argument(
    "--format", choices=("tsv", "csv", "jsonl"), help="of the table (default tsv; csv for --csv)"
)
SCORES = (
    FORMAT,
    DATA_DIR,
    output("write the table to a file, which appears whole at the end"),
    add_protocol_flags,
)
TEXTS = "text, a sentence a line (default, or -: standard input); a directory is one more run"
_BOUNDARY = (
    "include the boundary after a word made of pieces (corrected, default), or not (published)"
)
WORDS = (
    TOKENIZER,
    argument(
        "--punctuation", choices=("word", "own"), help="attached to its word, or a word of its own"
    ),
    argument("--boundary", choices=("corrected", "published"), default="corrected", help=_BOUNDARY),
)
NEEDS = {"column": "csv", "regions": "csv", "spans": "csv", "save_adapted": "adapt"}
EXCLUDES = {  # an argument of `surprisal` -> why, and what it leaves no room for
    "layout": (
        "is that tool's table of one run, in bits",
        ("format", "top_k", "csv", "unit", "predictors", "runs"),
    ),
    "csv": ("names the sentences and has a row for each displayed word", ("texts", "top_k", "eos")),
    "spans": (
        "scores characters by themselves",
        ("regions", "adapt", "protocol", "context", "punctuation", "boundary"),
    ),
    "adapt": ("learns by the model's own probabilities", ("protocol",)),
    "save_adapted": ("keeps one model", ("runs",)),
}


def _oov(*choices: str) -> Adder:
    what = {
        "error": "refuse them",
        "nan": "give them NaN",
        "filter": "leave out pairs that differ in nothing else",
    }
    others = " or ".join(what[choice] for choice in choices)
    return argument(
        "--oov",
        choices=("unk", *choices),
        default="unk",
        help=f"read unknown words as <unk>, or {others}",
    )


@verb(
    "the surprisal of every word of a text",
    *MODEL,
    pathname("texts", "FILE", TEXTS, nargs="*", default=[]),
    pathname("--csv", "FILE", "stimuli in CSV (-: standard input), a row a word"),
    argument(
        "--column", metavar="NAME", help="the column of sentences in --csv (default Sentence)"
    ),
    argument(
        "--regions",
        metavar="NAME",
        help="a column of --csv with each sentence's regions, | between: a row each",
    ),
    argument(
        "--spans",
        choices=("characters",),
        help="a row for the characters from start to end (columns of --csv)",
    ),
    switch("--predictors", "add length and log frequency in the training text"),
    *WORDS,
    argument(
        "--unit",
        choices=("bits", "nats"),
        default="bits",
        help="of surprisal and entropy (default bits)",
    ),
    argument(
        "--context",
        choices=("sentence", "stream"),
        default="sentence",
        help="stream: pass the state on",
    ),
    _oov("error", "nan"),
    argument(
        "--top-k", type=whole(1), metavar="K", help="add the K likeliest words in each word's place"
    ),
    switch("--eos", "also a row for the <eos> that ends each line"),
    argument("--layout", choices=[*LAYOUTS], default="jaxlm", help="columns of another tool"),
    argument(
        "--adapt", type=float, metavar="RATE", help="after each sentence take a step of SGD on it"
    ),
    pathname("--save-adapted", "DIR", "keep the adapted model as a run"),
    *SCORES,
)
def surprisal(args: argparse.Namespace) -> None:
    args.runs = [path for path in args.texts if path.is_dir()]
    args.texts = [path for path in args.texts if not path.is_dir()]
    _check_surprisal(args)
    how = _how(args) | {
        "context": args.context,
        "unit": args.unit,
        "eos": args.eos,
        "top_k": args.top_k or 0,
    }
    runs = [args.run, *args.runs]
    short = len({path.name for path in runs}) == len(runs)
    lms = {path.name if short else str(path): loaded(path, args.checkpoint) for path in runs}
    scorings: dict[str, Any] = {
        name: lm.scorer(**how) if args.adapt is None else lm.adaptive(args.adapt, **how)
        for name, lm in lms.items()
    }

    from jaxlm.scoring.reading_times import predictors
    from jaxlm.scoring.stimuli import read_table

    stimuli = read_table(args.csv, args.column or "Sentence") if args.csv else None
    score = _scorer(args, stimuli, how, {lm.vocab.kind for lm in lms.values()})
    counts = (
        {name: _word_counts(name, lm, args.data_dir) for name, lm in lms.items()}
        if args.predictors
        else {}
    )
    blocks = [(1, stimuli.sentences, stimuli.where)] if stimuli else _blocks(args.texts)
    rows = 0
    unknown = {name: Counter[str]() for name in lms}
    keeping = _keeping(args, lms, scorings) if args.save_adapted else nullcontext()
    with keeping, _writing(args, "csv" if stimuli else args.layout) as write:
        for first, lines, where in blocks:
            tables = {
                name: score(lm, lines, where, first=first, scoring=scorings[name])
                for name, lm in lms.items()
            }
            columns = {name: dict(LAYOUTS[args.layout](one)) for name, one in tables.items()}
            for name, known in counts.items():
                columns[name] |= predictors(lms[name], tables[name], known)
            own = side_by_side(columns)
            write({**_kept(stimuli, own), **own} if stimuli else own, first == 1)
            for name, table in tables.items():
                unknown[name].update(compress(table.word, table.oov))
            rows += len(next(iter(tables.values())))
    what = (
        "critical spans have words"
        if args.spans
        else "regions have words"
        if args.regions
        else "words are"
    )
    for name, found in unknown.items():
        say_unknown(found, rows, what, f" of {name}" if len(lms) > 1 else "")


@contextmanager
def _keeping(
    args: argparse.Namespace, lms: Mapping[str, Any], scorings: Mapping[str, Any]
) -> Iterator[None]:
    """Opens the folder of --save-adapted, before hours of scoring; keeps the adapted model in it after the scoring."""
    from jaxlm.files import explained, new_folder
    from jaxlm.runs.loading import keep_model, unread_corpus

    ((name, lm),) = lms.items()
    with ExitStack() as made:
        with explained(RunDirError, f"cannot make the run {args.save_adapted}"):
            folder = made.enter_context(new_folder(args.save_adapted))
        yield
        note = f"adapted from {args.run} by jaxlm surprisal --adapt {args.adapt:g}"
        trained = lm.corpus
        spec = lm.config.data.corpus
        corpus = unread_corpus(trained["name"], trained["sha256"], lm.vocab, note, spec=spec)
        keep_model(folder, lm.config.replace(epochs=0), scorings[name].params, corpus)


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """The options of scoring that verbs share. Raises JaxlmError."""
    shared = {name: getattr(args, name) for name in ("oov", "tokenizer", "boundary", "data_dir")}
    return {**shared, "punctuation": args.punctuation or "word", "protocol": given_protocol(args)}


def _check_surprisal(args: argparse.Namespace) -> None:
    """Raises JaxlmError where arguments contradict each other."""
    usual = {
        "layout": "jaxlm",
        "protocol": "plain",
        "context": "sentence",
        "unit": "bits",
        "boundary": "corrected",
    }
    given = {
        name: ", ".join(map(str, value))
        if isinstance(value, list)
        else f"--{name.replace('_', '-')}"
        for name, value in vars(args).items()
        if value is not None and value is not False and value not in ([], usual.get(name))
    }
    for name, other in NEEDS.items():
        if name in given and other not in given:
            raise JaxlmError(f"{given[name]} needs --{other}: give both")
    for name, (why, others) in EXCLUDES.items():
        if name in given and (taken := [given[other] for other in others if other in given]):
            raise JaxlmError(f"{given[name]} {why}: leave {', '.join(taken)} out")
    if args.save_adapted and (args.save_adapted.exists() or args.save_adapted == args.output):
        raise JaxlmError(
            f"{args.save_adapted} exists already, or is --output too: name a new directory"
        )


def _scorer(
    args: argparse.Namespace,
    stimuli: "StimulusTable | None",
    how: Mapping[str, Any],
    kinds: set[str],
) -> Callable[..., Any]:
    """What makes a table: (model, lines, what names a line; the number of the first, the scoring) -> its table."""
    if stimuli and args.spans:
        from jaxlm.scoring.reading_times import span_surprisal

        spans = [*zip(*map(stimuli.numbers, ("start", "end")), strict=True)]
        options = {name: how[name] for name in ("oov", "unit", "tokenizer")}
        return lambda lm, lines, where, **_: span_surprisal(lm, lines, spans, where, **options)
    if stimuli and args.regions:
        how = {
            **how,
            "regions": [[*map(str.strip, cell.split("|"))] for cell in stimuli.cells(args.regions)],
        }
    by_tokens = args.layout != "jaxlm" or args.top_k
    if by_tokens and args.punctuation and "words" in kinds:
        raise JaxlmError(
            "--punctuation asks for rows of displayed words: leave it out, or --layout and --top-k"
        )
    if args.top_k and args.predictors and kinds != {"words"}:
        raise JaxlmError(
            "--predictors are of words, and --top-k has a row for each piece: leave one out"
        )
    by_words = (stimuli or args.punctuation or kinds != {"words"}) and not by_tokens
    method = "word_surprisal" if by_words else "surprisal"
    return lambda lm, lines, where, **at: getattr(lm, method)(lines, where=where, **at, **how)


def _kept(stimuli: "StimulusTable", own: Columns) -> Columns:
    """The other columns of the stimuli, a row for each row of the result. Raises DataError where names collide."""
    kept = {
        f"stimulus.{name}" if name in own else name: cells
        for name, cells in stimuli.columns.items()
    }
    if len({*kept, *own}) < len(stimuli.columns) + len(own):
        raise DataError(
            f"{stimuli.name} has a column named as one of the result: rename one of {', '.join(kept)}"
        )
    return {
        name: [cells[sentence - 1] for sentence in own["sentence_id"]]
        for name, cells in kept.items()
    }


def _word_counts(name: str, lm: "LanguageModel", data_dir: Path | None) -> Mapping[str, int] | None:
    """How often each word is in the training text of a run; None, with a note, where the text is not there."""
    from jaxlm.data.corpora import UNKNOWN
    from jaxlm.scoring.reading_times import word_counts

    try:
        return word_counts(lm.find_corpus(data_dir=data_dir))
    except DataError as error:  # (which may name flags of other verbs)
        unknown = lm.config.data.corpus == UNKNOWN
        why = "the corpus of an imported model is unknown" if unknown else error
        say_line(f"note: no log frequencies of {name}: {why}", sys.stderr)


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

    from jaxlm.scoring.surprisal import SurprisalOptions

    path = args.output or Path("states.npz" if str(args.text) == "-" else f"{args.text.stem}.npz")
    read = lm.sentence_reader(SurprisalOptions(tokenizer=args.tokenizer))
    words = []
    numbers = []
    found = []
    with _output(path) as file:
        for first, lines, where in _blocks([args.text]):
            for sentence, line in enumerate(lines, first):
                tokens = read(line, "unk", where(sentence)).tokens
                found.append(lm.states(tokens, where=where(sentence)))
                words += tokens
                numbers += [sentence] * len(tokens)
        arrays = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        archive = io.BytesIO()  # a device cannot be sought in, as the archive's writer does
        np.savez(
            archive,
            allow_pickle=False,
            words=np.array(words),
            sentence_id=np.array(numbers),
            **arrays,
        )
        file.write(archive.getbuffer())
    say_line(f"{path}: {len(words):,} {lm.vocab.kind}; {', '.join(arrays)}")


@verb(
    "accuracy on minimal pairs in BLiMP's format",
    *MODEL,
    pathname("pairs", "FILE", "JSON lines with sentence_good and sentence_bad", nargs="+"),
    *WORDS,
    _oov("error", "filter"),
    switch("--eos", "score the <eos> after the last word too"),
    *SCORES,
)
def minimal_pairs(args: argparse.Namespace) -> None:
    how = _how(args)
    lm = loaded(args.run, args.checkpoint)
    with _writing(args) as write:
        found = lm.minimal_pairs(args.pairs, eos=args.eos, **how)
        write(_columns(found.total._fields, [*found.by_uid, found.total]), True)


@verb(
    "results of SyntaxGym test suites",
    *MODEL,
    pathname("suites", "SUITE.json", "test suites in SyntaxGym's format", nargs="+"),
    *WORDS,
    _oov("error"),
    *SCORES,
)
def syntaxgym(args: argparse.Namespace) -> None:
    how = _how(args)
    lm = loaded(args.run, args.checkpoint)
    rows = []

    from jaxlm.scoring.syntaxgym import read_suite

    with _writing(args) as write:
        suites = [*map(read_suite, args.suites)]  # all, before the first is scored
        for result in [lm.syntaxgym(suite, **how) for suite in suites]:
            name = result.suite.name
            items = result.items
            oov = sum(item.oov for item in result.items)
            for place, formula in enumerate(result.suite.predictions):
                rows += [
                    (name, item.number, formula, int(item.predictions[place]), item.oov)
                    for item in items
                ]
                rows.append((name, "all", formula, result.by_prediction[place], oov))
            rows.append((name, "all", "every prediction", result.accuracy, oov))
        write(_columns(("suite", "item", "prediction", "correct", "oov"), rows), True)


def _columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Columns:
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _blocks(texts: Sequence[Path]) -> Iterator[tuple[int, list[str], Callable[[int], str]]]:
    """Lines as they come, from files one after the other: the number of the first, the lines, and what names one."""
    from jaxlm.data.text import read_errors
    from jaxlm.scoring.stimuli import lines_of, source

    paths = texts or [Path("-")]
    done = 0
    for path in paths:  # all of them, before hours are spent on the first
        if path.suffix.lower() in (".csv", ".tsv"):
            how = f"jaxlm surprisal takes it as --csv {path} --column NAME; or write its sentences to a file of lines"
            raise JaxlmError(f"{path} is a table: {how}")
        if str(path) != "-":
            with read_errors(path):
                path.stat()
    for path in paths:
        before = done
        name = source(path)
        for lines in lines_of(path):
            yield (
                done + 1,
                lines,
                lambda sentence, before=before, name=name: f"{name}, line {sentence - before}",
            )
            done += len(lines)


@contextmanager
def _writing(
    args: argparse.Namespace, layout: str = "jaxlm"
) -> Iterator[Callable[[Columns, bool], object]]:
    """A function that writes columns, with their names or without, to --output or standard output, by --format.

    A file appears whole at the end. Control characters become escapes, except in CSV that no terminal shows.
    """
    terminal = args.output is None and is_terminal(sys.stdout)
    format = args.format or layout
    clean = (
        str
        if format == "csv" and not terminal
        else partial(printable, keep_newlines=format == "csv")
    )
    text = partial(table_text, format=format, clean=clean)
    if args.output is None:
        yield lambda columns, header: say(text(columns, header), end="", exact=True, flush=True)
        return
    with _output(args.output) as file:
        yield lambda columns, header: file.write(
            text(columns, header).encode("utf-8", "surrogateescape")
        )


@contextmanager
def _output(path: Path) -> Iterator[BinaryIO]:
    """The file of --output, before hours are spent on what it will hold. Raises JaxlmError."""
    from jaxlm import files

    try:
        with files.output(path) as file:
            yield file
    except OSError as error:  # (what is short of memory in here is the scoring)
        raise JaxlmError(f"{path} cannot be written: {files.reason(error)}") from None
