"""The verbs that compare models with people: `jaxlm babylm` and `humanlike`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxlm.cli.arguments import (
    CHECKPOINT,
    DATA_DIR,
    JSON,
    MODEL,
    Parser,
    argument,
    choice,
    command,
    pathname,
    switch,
    whole,
)
from jaxlm.cli.opening import open_model
from jaxlm.cli.tables import columns_of, json_text, table_text
from jaxlm.ngrams.folder import is_ngram_folder
from jaxlm.runs import checkpoint
from jaxlm.runs.loading import load
from jaxlm.scoring.babylm import Score
from jaxlm.scoring.babylm import babylm as scores_of
from jaxlm.scoring.gain_plot import gain_plot
from jaxlm.scoring.humanlike import COLUMNS, FOLDS, Gain, read_times
from jaxlm.scoring.humanlike import humanlike as gains_of
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.terminal import printable, say, say_line, say_written


@command(
    *MODEL,
    pathname("data", "DATA", "the pipeline's folder of data: full_eval or fast_eval"),
    choice(
        "--tokenizer",
        ("none", "ptb"),
        "split words at white space (default, as the pipeline does), or as in Penn Treebank",
        default="none",
    ),
    JSON,
)
def babylm(args: argparse.Namespace) -> None:
    """Prints the scores of BabyLM's zero-shot tests, as the pipeline prints them."""
    lm = open_model(args.run, args.checkpoint)
    skipped = []
    scores: list[Score] = []
    for result in scores_of(lm, args.data, _checkpoints(args.run), args.tokenizer):
        if isinstance(result, Score):
            scores.append(result)
            if not args.json:
                title = result.test.upper().replace("_", " ")
                say(f"{title}\t{result.score:.2f}", exact=True, flush=True)
        else:
            skipped.append(result)
            say_line(f"note: skipped {result}", sys.stderr)
    if args.json:
        tree = {
            "run": str(args.run),
            "checkpoint": args.checkpoint,
            "scores": {result.test: result.score for result in scores},
            "groups": {result.test: result.groups for result in scores if result.groups},
            "skipped": skipped,
        }
        say(json_text(tree, 1))


def _checkpoints(run: Path) -> Iterator[tuple[int, LanguageModel]]:
    """(words seen, model) of the checkpoints that a run keeps by words, in their order."""
    if is_ngram_folder(run):
        return
    for step, manifest in sorted(checkpoint.manifests(run).items()):
        if manifest.words:
            yield manifest.words, load(run, str(step))


def _add_columns(parser: Parser) -> None:
    for column, names in COLUMNS.items():
        default = f"its column in --times (default: {', '.join(names)})"
        argument(f"--{column}", "NAME", default, rare=True)(parser)


@command(
    pathname("runs", "RUN", "directories of runs and of n-gram models", nargs="+"),
    pathname("--times", "FILE", "reading times in CSV, a row a time", required=True),
    switch("--mixed", "a random intercept for each participant, in place of mean times"),
    argument(
        "--folds", "K", "parts of the items, each held out once", type=whole(2), default=FOLDS
    ),
    pathname("--plot", "FILE", "draw perplexity against gain, as PNG, PDF or SVG"),
    _add_columns,
    CHECKPOINT,
    DATA_DIR,
    JSON,
)
def humanlike(args: argparse.Namespace) -> None:
    """Prints what each run's surprisal explains of reading times, and each two compared."""
    names = {column: getattr(args, column) for column in COLUMNS}
    corpus = read_times(args.times, names)
    models = {str(run): open_model(run, args.checkpoint, args.data_dir) for run in args.runs}
    gains = gains_of(models, corpus, args.mixed, args.folds)
    if args.plot:
        gain_plot([gain for gain in gains if gain.model in models], args.plot)
        say_written(args.plot, args.plot)
    if args.json:
        say(json_text([gain._asdict() for gain in gains], 1))
    else:
        say(table_text(columns_of(Gain._fields, gains), True, "tsv", printable), end="", exact=True)
