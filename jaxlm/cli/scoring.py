"""The verbs that score texts: `jaxlm surprisal`, `states`, `minimal-pairs` and `syntaxgym`."""

import argparse
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxlm.base import files
from jaxlm.base.errors import DataError, JaxlmError, RunDirError, reason
from jaxlm.base.packaged import resolved
from jaxlm.base.terminal import is_terminal, printable, say, say_line, say_written
from jaxlm.cli.arguments import (
    DATA_DIR,
    MODEL,
    TOKENIZER,
    Adder,
    argument,
    choice,
    command,
    pathname,
    switch,
    whole,
)
from jaxlm.cli.config_flags import add_protocol_flags, given_protocol
from jaxlm.cli.opening import check_each_once, open_model
from jaxlm.cli.tables import (
    LAYOUTS,
    Columns,
    columns_of,
    mean_table,
    one_below_the_other,
    side_by_side,
    table_text,
)
from jaxlm.cli.using import say_unknown
from jaxlm.data.corpora import UNKNOWN
from jaxlm.data.text import read_errors
from jaxlm.runs.loading import keep_model, unread_corpus
from jaxlm.scoring.hub_model import HubModel
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.reading_times import predictors, read_counts, span_surprisal, word_counts
from jaxlm.scoring.stimuli import StimulusTable, lines_of, read_table, source
from jaxlm.scoring.surprisal import UNITS, SurprisalOptions
from jaxlm.scoring.syntaxgym import read_suite

_SCORES = (
    choice("--format", ("tsv", "csv", "jsonl"), "of the table (default tsv; csv for --csv)"),
    DATA_DIR,
    pathname("-o --output", "FILE", "write the table to a file, which appears whole at the end"),
    add_protocol_flags,
)
_TEXTS = "text, a sentence a line (default, or -: standard input); a directory is one more run"
_BOUNDARY = (
    "include the boundary after a word made of pieces (corrected, default), or not (published)"
)
_WORDS = (
    TOKENIZER,
    choice("--punctuation", ("word", "own"), "attached to its word, or a word of its own"),
    choice("--boundary", ("corrected", "published"), _BOUNDARY, default="corrected", rare=True),
)
_NEEDS = {
    "column": "csv",
    "regions": "csv",
    "region_names": "regions",
    "spans": "csv",
    "save_adapted": "adapt",
    "frequencies": "predictors",
}
_EXCLUDES = {  # an argument of `surprisal` -> why, and what it leaves no room for
    "layout": (
        "is that tool's table of one run, in bits",
        ("format", "top_k", "csv", "unit", "predictors", "runs"),
    ),
    "csv": ("names the sentences and has a row for each displayed word", ("texts", "top_k", "eos")),
    "spans": (
        "scores characters by themselves",
        ("regions", "adapt", "protocol", "context", "punctuation", "boundary"),
    ),
    "hub": (
        "scores the words of a line as they stand",
        ("regions", "spans", "layout", "top_k", "eos", "long"),
    ),
    "adapt": ("learns by the model's own probabilities", ("protocol",)),
    "save_adapted": ("keeps one model", ("runs",)),
    "mean": ("is one table of all runs", ("long",)),
}
_USUAL = {  # defaults of `surprisal` that count as not given
    "layout": "jaxlm",
    "protocol": "plain",
    "context": "sentence",
    "unit": "bits",
    "boundary": "corrected",
}
_OOV = {  # --oov -> what it does with unknown words
    "error": "refuse them",
    "nan": "give them NaN",
    "filter": "leave out pairs that differ in nothing else",
}


class _Block(NamedTuple):
    """Lines of a text, as they come.

    Attributes:
        first: The number of the first line, from 1.
        lines: The lines.
        where: What names a line in an error, by its number.
    """

    first: int
    lines: list[str]
    where: Callable[[int], str]


# Scores a block by a model: (model, block, what `LanguageModel.scorer` returned) -> a table.
_Score = Callable[[LanguageModel, _Block, Any], Any]


def _oov(*choices: str) -> Adder:
    remedies = " or ".join(_OOV[choice] for choice in choices)
    return choice(
        "--oov", ("unk", *choices), f"read unknown words as <unk>, or {remedies}", default="unk"
    )


@command(
    *MODEL,
    pathname("texts", "FILE", _TEXTS, nargs="*", default=[]),
    pathname("--csv", "FILE", "stimuli in CSV (-: standard input), a row a word"),
    argument("--column", "NAME", "the column of sentences in --csv (default Sentence)"),
    argument(
        "--regions",
        "NAME",
        "a column of --csv with each sentence's regions, as in first:the bank|last:lends: "
        "a row each",
    ),
    argument("--region-names", "NAME", "a column with the regions' names, as in first|last"),
    choice(
        "--spans",
        ("characters",),
        "a row for the characters from start to end (columns of --csv)",
        rare=True,
    ),
    switch("--predictors", "add length and log frequency in the training text"),
    pathname(
        "--frequencies",
        "FILE",
        "a CSV file of words (word) and counts (count) in place of the training text",
    ),
    argument(
        "--hub",
        "MODEL",
        "add the surprisal of each word by a model of transformers: a folder, or gpt2",
        rare=True,
    ),
    switch("--mean", "of several runs: the mean of their numbers"),
    switch("--long", "of several runs: a row for each run, in place of columns"),
    *_WORDS,
    choice("--unit", ("bits", "nats"), "of surprisal and entropy (default bits)", default="bits"),
    choice("--context", ("sentence", "stream"), "stream: pass the state on", default="sentence"),
    _oov("error", "nan"),
    argument("--top-k", "K", "add the K likeliest words in each word's place", type=whole(1)),
    switch("--eos", "also a row for the <eos> that ends each line"),
    choice("--layout", [*LAYOUTS], "columns of another tool", default="jaxlm"),
    argument(
        "--adapt", "RATE", "after each sentence take a step of SGD on it", type=float, rare=True
    ),
    pathname("--save-adapted", "DIR", "keep the adapted model as a run", rare=True),
    *_SCORES,
)
def surprisal(args: argparse.Namespace) -> None:
    """Prints the surprisal of every word of texts, by one run or several side by side."""
    named = [path if path.is_file() else resolved(path) for path in args.texts]
    args.runs = [path for path in named if path.is_dir()]
    args.texts = [path for path in named if not path.is_dir()]
    _check_flags(args)
    runs = [args.run, *args.runs]
    options = _options(args) | {
        "context": args.context,
        "unit": args.unit,
        "eos": args.eos,
        "top_k": args.top_k or 0,
    }
    names_differ = len({run.name for run in runs}) == len(runs)
    lms = {
        run.name if names_differ else str(run): open_model(run, args.checkpoint, args.data_dir)
        for run in runs
    }
    rate: float | None = args.adapt
    scorers: dict[str, Any] = {}
    for name, lm in lms.items():
        if rate is None:
            scorers[name] = lm.scorer(**options)
        else:
            scorers[name] = lm.adaptive(rate, **options)
    stimuli = read_table(args.csv, args.column or "Sentence") if args.csv else None
    score = _score_function(args, stimuli, options, {lm.vocab.kind for lm in lms.values()})
    counts = {}
    if args.predictors:
        given = read_counts(args.frequencies) if args.frequencies else None
        counts = {name: given or _word_counts(name, lm) for name, lm in lms.items()}
    join = _join_function(args)
    blocks: Iterator[_Block] | list[_Block] = _blocks(args.texts)
    if stimuli is not None:
        blocks = [_Block(1, stimuli.sentences, stimuli.where)]
    word_count = Counter[str]()
    unknown = {name: Counter[str]() for name in lms}
    with ExitStack() as stack:
        if args.save_adapted:
            ((name, lm),) = lms.items()
            note = f"adapted from {args.run} by jaxlm surprisal --adapt {rate:g}"
            stack.enter_context(_keeping(args.save_adapted, lm, scorers[name], note))
        default_format = args.layout if stimuli is None else "csv"
        write = stack.enter_context(_writer(args.output, args.format or default_format))
        for block in blocks:
            tables = {}
            for name, lm in lms.items():
                table = score(lm, block, scorers[name])
                words, outside = table.words_and_unknown()
                word_count[name] += words
                unknown[name].update(outside)
                tables[name] = dict(LAYOUTS[args.layout](table))
                if args.predictors:
                    tables[name] |= predictors(lm, table, counts[name])
            columns = join(tables)
            if stimuli is not None:
                regions = args.regions, args.region_names
                columns = {**_stimulus_columns(stimuli, columns, regions), **columns}
            write(columns, block.first == 1)
    subject = "critical spans have words" if args.spans else "words are"
    for name in lms:
        whose = f" of {name}" if len(lms) > 1 else ""
        say_unknown(unknown[name], word_count[name], subject, whose)


@command(
    *MODEL,
    pathname("text", "FILE", "text, a sentence a line (-: standard input)"),
    TOKENIZER,
    pathname("-o --output", "FILE", "the file to write (default: the text's name with .npz)"),
)
def states(args: argparse.Namespace) -> None:
    """Writes the state of every layer after each word."""
    lm = open_model(args.run, args.checkpoint)
    path = args.output or Path("states.npz" if str(args.text) == "-" else f"{args.text.stem}.npz")
    read = lm.sentence_reader(SurprisalOptions(tokenizer=args.tokenizer))
    words = []
    sentence_id = []
    layers = []
    with _output(path) as file:
        for block in _blocks([args.text]):
            for sentence, line in enumerate(block.lines, block.first):
                where = block.where(sentence)
                tokens = read(line, "unk", where).tokens
                layers.append(lm.states(tokens, where=where))
                words += tokens
                sentence_id += [sentence] * len(tokens)
        arrays: dict[str, Any] = {
            name: np.concatenate([states[name] for states in layers]) for name in layers[0]
        }
        archive = io.BytesIO()  # A device cannot be sought in, as the archive's writer does.
        labels = {"words": np.array(words), "sentence_id": np.array(sentence_id)}
        np.savez(archive, **labels, **arrays)
        file.write(archive.getbuffer())
    say_written(path, f"{path}: {len(words):,} {lm.vocab.kind}; {', '.join(arrays)}")


@command(
    *MODEL,
    pathname("pairs", "FILE", "JSON lines with sentence_good and sentence_bad", nargs="+"),
    *_WORDS,
    _oov("error", "filter"),
    switch("--eos", "score the <eos> after the last word too"),
    *_SCORES,
)
def minimal_pairs(args: argparse.Namespace) -> None:
    """Prints the accuracy on minimal pairs, in all and of each paradigm."""
    options = _options(args)
    lm = open_model(args.run, args.checkpoint, args.data_dir)
    with _writer(args.output, args.format) as write:
        result = lm.minimal_pairs(args.pairs, eos=args.eos, **options)
        write(columns_of(result.total._fields, [*result.by_uid, result.total]), True)


@command(
    *MODEL,
    pathname("suites", "SUITE.json", "test suites in SyntaxGym's format", nargs="+"),
    *_WORDS,
    _oov("error"),
    *_SCORES,
)
def syntaxgym(args: argparse.Namespace) -> None:
    """Prints which predictions of test suites hold."""
    options = _options(args)
    lm = open_model(args.run, args.checkpoint, args.data_dir)
    rows = []
    with _writer(args.output, args.format) as write:
        suites = [read_suite(path) for path in args.suites]  # All, before the first is scored.
        for result in [lm.syntaxgym(suite, **options) for suite in suites]:
            name = result.suite.name
            oov = sum(item.oov for item in result.items)
            for place, formula in enumerate(result.suite.predictions):
                for item in result.items:
                    holds = int(item.predictions[place])
                    rows.append((name, item.number, formula, holds, item.oov))
                rows.append((name, "all", formula, result.by_prediction[place], oov))
            rows.append((name, "all", "every prediction", result.accuracy, oov))
        write(columns_of(("suite", "item", "prediction", "correct", "oov"), rows), True)


def _check_flags(args: argparse.Namespace) -> None:
    """Raises JaxlmError where arguments of `surprisal` contradict each other."""
    given = {}
    for name, value in vars(args).items():
        if value is None or value is False or value == [] or value == _USUAL.get(name):
            continue
        if isinstance(value, list):
            given[name] = ", ".join(map(str, value))
        else:
            given[name] = f"--{name.replace('_', '-')}"
    for name, other in _NEEDS.items():
        if name in given and other not in given:
            raise JaxlmError(f"{given[name]} needs --{other}: give both")
    for name, (why, others) in _EXCLUDES.items():
        excluded = [given[other] for other in others if other in given]
        if name in given and excluded:
            raise JaxlmError(f"{given[name]} {why}: leave {', '.join(excluded)} out")
    check_each_once([args.run, *args.runs])
    if args.hub and args.punctuation == "own":
        raise JaxlmError("--hub scores words with their punctuation: leave --punctuation own out")
    for name in ("mean", "long"):
        if name in given and not args.runs:
            raise JaxlmError(f"--{name} is about several runs: name another beside {args.run}")
    if args.save_adapted and (args.save_adapted.exists() or args.save_adapted == args.output):
        raise JaxlmError(
            f"{args.save_adapted} exists already, or is --output too: name a new directory"
        )


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of scoring that verbs share. Raises JaxlmError."""
    return {
        "oov": args.oov,
        "tokenizer": args.tokenizer,
        "boundary": args.boundary,
        "punctuation": args.punctuation or "word",
        "protocol": given_protocol(args),
    }


def _join_function(args: argparse.Namespace) -> Callable[[Mapping[str, Columns]], Columns]:
    """What makes one table of those of several runs, with a column of --hub's model."""
    join = side_by_side
    if args.mean:
        join = mean_table
    elif args.long:
        join = one_below_the_other
    if not args.hub:
        return join
    model = HubModel(args.hub)

    def with_hub(tables: Mapping[str, Columns]) -> Columns:
        columns = join(tables)
        corrected = args.boundary == "corrected"
        nats = model.column(columns["sentence_id"], columns["word"], corrected)
        name = Path(args.hub).resolve().name
        return {**columns, f"surprisal.{name}": nats / UNITS[args.unit]}

    return with_hub


def _score_function(
    args: argparse.Namespace,
    stimuli: StimulusTable | None,
    options: Mapping[str, Any],
    kinds: set[str],
) -> _Score:
    """What scores a block by a model: by spans, regions, displayed words or tokens."""
    by_tokens = args.layout != "jaxlm" or args.top_k
    if by_tokens and args.punctuation and "words" in kinds:
        raise JaxlmError(
            "--punctuation asks for rows of displayed words: leave it out, or --layout and --top-k"
        )
    if args.top_k and args.predictors and kinds != {"words"}:
        raise JaxlmError(
            "--predictors are of words, and --top-k has a row for each piece: leave one out"
        )

    if stimuli is not None and args.spans:
        spans = list(zip(stimuli.numbers("start"), stimuli.numbers("end"), strict=True))
        span_options = {name: options[name] for name in ("oov", "unit", "tokenizer")}

        def score_spans(
            lm: LanguageModel,
            block: _Block,
            _: Any,
        ) -> Any:
            return span_surprisal(lm, block.lines, spans, block.where, **span_options)

        return score_spans

    if stimuli is not None and args.regions:
        regions = stimuli.regions(args.regions, args.region_names)
        options = {**options, "regions": regions}
    by_words = stimuli is not None or args.punctuation or args.hub or kinds != {"words"}

    def score(
        lm: LanguageModel,
        block: _Block,
        scoring: Any,
    ) -> Any:
        method = lm.word_surprisal if by_words and not by_tokens else lm.surprisal
        return method(block.lines, where=block.where, first=block.first, scoring=scoring, **options)

    return score


@contextmanager
def _keeping(
    run_dir: Path,
    lm: LanguageModel,
    scorer: Any,
    note: str,
) -> Iterator[None]:
    """Opens the folder of --save-adapted before hours of scoring, and fills it afterwards."""
    with ExitStack() as stack:
        with files.explained(RunDirError, f"cannot make the run {run_dir}"):
            folder = stack.enter_context(files.new_folder(run_dir))
        yield
        corpus = unread_corpus(
            lm.corpus["name"], lm.corpus["sha256"], lm.vocab, note, spec=lm.config.data.corpus
        )
        keep_model(folder, lm.config.replace(epochs=0), scorer.params, corpus)


def _stimulus_columns(
    stimuli: StimulusTable,
    columns: Columns,
    without: Sequence[str | None],
) -> Columns:
    """The other columns of the stimuli, except some, a row for each row of the result.

    Raises DataError where names collide.
    """
    repeated = {}
    others = {name: cells for name, cells in stimuli.columns.items() if name not in without}
    for name, cells in others.items():
        title = f"stimulus.{name}" if name in columns else name
        repeated[title] = [cells[sentence - 1] for sentence in columns["sentence_id"]]
    if len({*repeated, *columns}) < len(others) + len(columns):
        raise DataError(
            f"{stimuli.name} has a column named as one of the result: "
            f"rename one of {', '.join(repeated)}"
        )
    return repeated


def _word_counts(name: str, lm: LanguageModel) -> Mapping[str, int] | None:
    """How often each word is in a run's training text; None, with a note, without the text."""
    try:
        return word_counts(lm.find_corpus())
    except DataError as error:  # Its sentence may name flags of other verbs.
        reason = str(error)
        if lm.config.data.corpus == UNKNOWN:
            reason = "the corpus of an imported model is unknown"
        say_line(f"note: no log frequencies of {name}: {reason}", sys.stderr)
        return None


def _blocks(texts: Sequence[Path]) -> Iterator[_Block]:
    """The lines of files one after the other, or of standard input.

    All files are looked for before the first is read.
    """
    paths = texts or [Path("-")]
    for path in paths:
        if path.suffix.lower() in (".csv", ".tsv"):
            raise JaxlmError(
                f"{path} is a table: jaxlm surprisal takes it as --csv {path} --column NAME; "
                "or write its sentences to a file of lines"
            )
        if str(path) != "-":
            with read_errors(path):
                path.stat()
    count = 0
    for path in paths:
        where = partial(_line_name, source(path), count)
        for lines in lines_of(path):
            yield _Block(count + 1, lines, where)
            count += len(lines)


def _line_name(
    name: str,
    before: int,
    sentence: int,
) -> str:
    """What names a line in an error, by its number among the lines of all files."""
    return f"{name}, line {sentence - before}"


@contextmanager
def _writer(path: Path | None, format: str | None) -> Iterator[Callable[[Columns, bool], object]]:
    """A function that writes columns, with their names or without, to --output or standard output.

    A file appears whole at the end. Control characters become escapes, except in CSV that no
    terminal shows.
    """
    shown = path is None and is_terminal(sys.stdout)
    clean: Callable[[str], str] = partial(printable, keep_newlines=format == "csv")
    if format == "csv" and not shown:
        clean = str
    text = partial(table_text, format=format or "tsv", clean=clean)
    if path is None:
        yield lambda columns, header: say(text(columns, header), end="", exact=True, flush=True)
        return
    with _output(path) as file:
        yield lambda columns, header: file.write(
            text(columns, header).encode("utf-8", "surrogateescape")
        )


@contextmanager
def _output(path: Path) -> Iterator[BinaryIO]:
    """The file of --output, before hours are spent on what it will hold. Raises JaxlmError."""
    try:
        with files.output(path) as file:
            yield file
    except OSError as error:  # A MemoryError in here is of the scoring.
        raise JaxlmError(f"{path} cannot be written: {reason(error)}") from None
