"""The verbs that score texts: `jaxlm surprisal`, `states`, `minimal-pairs` and `syntaxgym`."""

import argparse
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxlm.base import files
from jaxlm.base.errors import DataError, JaxlmError, RunDirError, reason
from jaxlm.base.packaged import resolved
from jaxlm.base.terminal import is_terminal, printable, say, say_line, say_written
from jaxlm.cli.arguments import (
    DATA_DIR,
    MODEL,
    TOKENIZER,
    argument,
    choice,
    command,
    fields_of,
    pathname,
    switch,
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
from jaxlm.data.text import lines_of, read_errors, source
from jaxlm.runs.loading import keep_model, unread_corpus
from jaxlm.scoring.hub_model import HubModel
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.model import SentenceReader
from jaxlm.scoring.options import UNITS, SurprisalOptions
from jaxlm.scoring.reading_times import predictors, read_counts, span_surprisal, training_counts
from jaxlm.scoring.stimuli import StimulusTable, read_table
from jaxlm.scoring.syntaxgym import read_suite

_SCORES = (
    choice("--format", ("tsv", "csv", "jsonl"), "of the table (default tsv; csv for --csv)"),
    DATA_DIR,
    pathname("-o --output", "FILE", "write the table to a file, which appears whole at the end"),
    add_protocol_flags,
)
_TEXTS = "text, a sentence a line (default, or -: standard input); a directory is one more run"
_WORDS = (
    TOKENIZER,
    choice("--punctuation", ("word", "own"), "attached to its word, or a word of its own"),
    fields_of(SurprisalOptions, "boundary", rare=True),
)
_OOV = "read unknown words as <unk>, refuse them (error)"
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
    "top_k": 0,
}


# Makes a table of sentences: (model, sentences, fields of `SurprisalOptions` by name).
_TableOf = Callable[..., Any]


@dataclass
class _Run:
    """A run whose model scores texts, and the words that it has met.

    Attributes:
        lm: The model.
        scoring: What `LanguageModel.scorer` or `adaptive` returned.
        words: How many words there were.
        unknown: Those of them that are outside the vocabulary.
    """

    lm: LanguageModel
    scoring: Any
    words: int = 0
    unknown: Counter[str] = field(default_factory=Counter)

    def table(self, table_of: _TableOf, block: StimulusTable, sentences_before: int) -> Any:
        """The table of a block, whose words are counted.

        Args:
            table_of: Makes the table.
            block: The sentences.
            sentences_before: How many were in the blocks before.
        """
        table = table_of(self.lm, block.sentences, where=block.where, scoring=self.scoring)
        words, unknown = table.words_and_unknown()
        self.words += words
        self.unknown.update(unknown)
        return replace(table, sentence_id=table.sentence_id + sentences_before)


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
    fields_of(SurprisalOptions, "unit", "context", "oov", "top_k", "eos"),
    choice("--layout", [*LAYOUTS], "columns of another tool", default="jaxlm"),
    argument(
        "--adapt", "RATE", "after each sentence take a step of SGD on it", type=float, rare=True
    ),
    pathname("--save-adapted", "DIR", "keep the adapted model as a run", rare=True),
    *_SCORES,
)
def surprisal(args: argparse.Namespace) -> None:
    """Prints the surprisal of every word of texts, by one run or several side by side."""
    paths = [path if path.is_file() else resolved(path) for path in args.texts]
    args.runs = [path for path in paths if path.is_dir()]
    args.texts = [path for path in paths if not path.is_dir()]
    _check_flags(args)
    options = _options(args)
    run_dirs = [args.run, *args.runs]
    names = [path.name for path in run_dirs]
    if len({*names}) < len(names):
        names = [*map(str, run_dirs)]
    runs: dict[str, _Run] = {}
    for name, path in zip(names, run_dirs, strict=True):
        lm = open_model(path, args.checkpoint, args.data_dir)
        adapts = args.adapt is not None
        scoring = lm.adaptive(args.adapt, **options) if adapts else lm.scorer(**options)
        runs[name] = _Run(lm, scoring)
    stimuli = read_table(args.csv, args.column or "Sentence") if args.csv else None
    kinds = {run.lm.vocab.kind for run in runs.values()}
    table_of = partial(_table_function(args, stimuli, kinds), **options)
    hub = HubModel(args.hub) if args.hub else None
    counts = {}
    if args.predictors:
        counts_of_file = read_counts(args.frequencies) if args.frequencies else None
        counts = {name: counts_of_file or _word_counts(name, run.lm) for name, run in runs.items()}
    adapted = None
    with ExitStack() as stack:
        default_format = args.layout if stimuli is None else "csv"
        write = stack.enter_context(_writer(args.output, args.format or default_format))
        if args.save_adapted:
            with files.explained(RunDirError, f"cannot make the run {args.save_adapted}"):
                adapted = stack.enter_context(files.new_folder(args.save_adapted))
        sentences_before = 0
        for block in [stimuli] if stimuli else _blocks(args.texts):
            tables = {}
            for name, run in runs.items():
                table = run.table(table_of, block, sentences_before)
                tables[name] = dict(LAYOUTS[args.layout](table))
                if args.predictors:
                    tables[name] |= predictors(run.lm, table, counts[name])
            write(_joined(args, tables, hub, block), sentences_before == 0)
            sentences_before += len(block.sentences)
        if adapted:
            (run,) = runs.values()
            _keep_adapted(
                adapted, run, f"adapted from {args.run} by jaxlm surprisal --adapt {args.adapt:g}"
            )
    subject = "critical spans have words" if args.spans else "words are"
    for name, run in runs.items():
        of_run = f" of {name}" if len(runs) > 1 else ""
        say_unknown(run.unknown, run.words, subject, of_run)


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
    read_sentence = SentenceReader(lm, SurprisalOptions(tokenizer=args.tokenizer))
    words = []
    sentence_id = []
    layers = []
    with _output(path) as file:
        for block in _blocks([args.text]):
            for number, line in enumerate(block.sentences, 1):
                where = block.where(number)
                tokens = read_sentence(line, "unk", where).tokens
                layers.append(lm.states(tokens, where=where))
                words += tokens
                sentence_id += [len(layers)] * len(tokens)
        arrays: dict[str, Any] = {
            name: np.concatenate([states[name] for states in layers]) for name in layers[0]
        }
        archive = io.BytesIO()  # A device cannot be sought in, as the archive's writer does.
        np.savez(archive, words=np.array(words), sentence_id=np.array(sentence_id), **arrays)
        file.write(archive.getbuffer())
    say_written(path, f"{path}: {len(words):,} {lm.vocab.kind}; {', '.join(arrays)}")


@command(
    *MODEL,
    pathname("pairs", "FILE", "JSON lines with sentence_good and sentence_bad", nargs="+"),
    *_WORDS,
    choice(
        "--oov",
        ("unk", "error", "filter"),
        f"{_OOV}, or leave out pairs that differ in nothing else (filter)",
        default="unk",
    ),
    *_SCORES,
)
def minimal_pairs(args: argparse.Namespace) -> None:
    """Prints the accuracy on minimal pairs, in all and of each paradigm."""
    options = _options(args)
    lm = open_model(args.run, args.checkpoint, args.data_dir)
    with _writer(args.output, args.format) as write:
        result = lm.minimal_pairs(args.pairs, **options)
        write(columns_of(result.total._fields, [*result.by_uid, result.total]), True)


@command(
    *MODEL,
    pathname("suites", "SUITE.json", "test suites in SyntaxGym's format", nargs="+"),
    *_WORDS,
    choice("--oov", ("unk", "error"), _OOV, default="unk"),
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
    shown = {}  # each argument that is given, as an error names it
    for name, value in vars(args).items():
        if value is None or value is False or value == [] or value == _USUAL.get(name):
            continue
        if isinstance(value, list):
            shown[name] = ", ".join(map(str, value))
        else:
            shown[name] = f"--{name.replace('_', '-')}"
    for name, other in _NEEDS.items():
        if name in shown and other not in shown:
            raise JaxlmError(f"{shown[name]} needs --{other}: give both")
    for name, (why, others) in _EXCLUDES.items():
        excluded = [shown[other] for other in others if other in shown]
        if name in shown and excluded:
            raise JaxlmError(f"{shown[name]} {why}: leave {', '.join(excluded)} out")
    check_each_once([args.run, *args.runs])
    if args.hub and args.punctuation == "own":
        raise JaxlmError("--hub scores words with their punctuation: leave --punctuation own out")
    for name in ("mean", "long"):
        if name in shown and not args.runs:
            raise JaxlmError(f"--{name} is about several runs: name another beside {args.run}")
    if args.save_adapted and args.save_adapted == args.output:
        raise JaxlmError(f"{args.save_adapted} is --output too: name a new directory")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `SurprisalOptions` that have a flag. Raises JaxlmError."""
    names = SurprisalOptions.__annotations__
    options = {name: value for name, value in vars(args).items() if name in names}
    options["punctuation"] = args.punctuation or "word"
    options["protocol"] = given_protocol(args)
    return options


def _table_function(
    args: argparse.Namespace, stimuli: StimulusTable | None, kinds: set[str]
) -> _TableOf:
    """What makes a table of sentences: by spans, regions, displayed words or tokens."""
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
        spans = [*zip(stimuli.numbers("start"), stimuli.numbers("end"), strict=True)]
        return partial(span_surprisal, spans=spans)
    if stimuli is not None and args.regions:
        regions = stimuli.regions(args.regions, args.region_names)
        return partial(LanguageModel.word_surprisal, regions=regions)
    by_words = stimuli is not None or args.punctuation or args.hub or kinds != {"words"}
    if by_words and not by_tokens:
        return LanguageModel.word_surprisal
    return LanguageModel.surprisal


def _word_counts(name: str, lm: LanguageModel) -> Mapping[str, int] | None:
    """How often each word is in a run's training text; None, with a note, without the text."""
    try:
        return training_counts(lm)
    except DataError as error:
        say_line(f"note: no log frequencies of {name}: {error}", sys.stderr)
        return None


def _joined(
    args: argparse.Namespace,
    tables: Mapping[str, Columns],
    hub: HubModel | None,
    block: StimulusTable,
) -> Columns:
    """One table of those of the runs, with columns of --hub's model and of the stimuli."""
    join = side_by_side
    if args.mean:
        join = mean_table
    elif args.long:
        join = one_below_the_other
    columns = join(tables)
    if hub is not None:
        corrected = args.boundary == "corrected"
        nats = hub.column(columns["sentence_id"], columns["word"], corrected)
        name = Path(args.hub).resolve().name
        columns = {**columns, f"surprisal.{name}": nats / UNITS[args.unit]}
    return block.beside(columns, (args.regions, args.region_names))


def _keep_adapted(folder: files.Folder, run: _Run, note: str) -> None:
    """Writes the run's model, as it is after learning, into the folder of --save-adapted."""
    lm = run.lm
    corpus = unread_corpus(
        lm.corpus["name"], lm.corpus["sha256"], lm.vocab, note, spec=lm.config.data.corpus
    )
    keep_model(folder, lm.config.replace(epochs=0), run.scoring.params, corpus)


def _blocks(texts: Sequence[Path]) -> Iterator[StimulusTable]:
    """The lines of files, or of standard input, one after the other as they come.

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
    for path in paths:
        count = 0
        for lines in lines_of(path):
            numbers = range(count + 1, count + len(lines) + 1)
            yield StimulusTable(source(path), lines, {}, numbers)
            count += len(lines)


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
