"""The verbs about what people read and say: `jaxlm babylm`, `humanlike` and `rescore`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxlm.base.errors import JaxlmError
from jaxlm.base.packaged import as_named
from jaxlm.base.terminal import printable, say, say_line, say_written
from jaxlm.cli.arguments import (
    CHECKPOINT,
    DATA_DIR,
    JSON,
    MODEL,
    argument,
    choice,
    command,
    pathname,
    run_path,
    switch,
    whole,
)
from jaxlm.cli.opening import check_each_once, open_model
from jaxlm.cli.tables import columns_of, json_text, table_text
from jaxlm.ngrams.folder import is_ngram_folder
from jaxlm.runs import checkpoint
from jaxlm.runs.loading import load
from jaxlm.scoring import rescoring
from jaxlm.scoring.babylm import Score
from jaxlm.scoring.babylm import babylm as scores_of
from jaxlm.scoring.humanlike import COLUMNS, FOLDS, Gain, gain_plot, read_times
from jaxlm.scoring.humanlike import humanlike as gains_of
from jaxlm.scoring.language_model import LanguageModel


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


@command(
    argument("runs", "RUN", "directories of runs and of n-gram models", nargs="+", type=run_path),
    pathname("--times", "FILE", "reading times in CSV, a row a time", required=True),
    switch("--mixed", "a random intercept for each participant, in place of mean times"),
    argument(
        "--folds",
        "K",
        "parts of the items, each held out once",
        type=whole(2),
        default=FOLDS,
    ),
    pathname("--plot", "FILE", "draw perplexity against gain, as PNG, PDF or SVG"),
    *(
        argument(
            f"--{column}", "NAME", f"its column in --times (default: {', '.join(names)})", rare=True
        )
        for column, names in COLUMNS.items()
    ),
    CHECKPOINT,
    DATA_DIR,
    JSON,
)
def humanlike(args: argparse.Namespace) -> None:
    """Prints what each run's surprisal explains of reading times, and each two compared."""
    check_each_once(args.runs)
    names = {column: getattr(args, column) for column in COLUMNS}
    corpus = read_times(args.times, names)
    models = {
        as_named(str(run)): open_model(run, args.checkpoint, args.data_dir) for run in args.runs
    }
    gains = gains_of(models, corpus, args.mixed, args.folds)
    if args.plot:
        gain_plot([gain for gain in gains if gain.model in models], args.plot)
        say_written(args.plot, args.plot)
    if args.json:
        say(json_text([gain._asdict() for gain in gains], 1))
    else:
        say(table_text(columns_of(Gain._fields, gains), True, "tsv", printable), end="", exact=True)


@command(
    *MODEL,
    pathname("nbest", "NBEST", "lines UTTERANCE-N COST ... WORD ..., as Kaldi has them"),
    argument("--with", "RUN", "one more model, as an n-gram", dest="other", type=run_path),
    argument("--costs", "N", "costs on each line (default 2)", type=whole(1), default=2),
    argument("--weights", "W", "of costs, models and words", type=float, nargs="+"),
    pathname("--tune", "NBEST", "find the weights on this list, by --reference"),
    pathname("--reference", "FILE", "lines UTTERANCE WORD ...: what was said"),
)
def rescore(args: argparse.Namespace) -> None:
    """Prints the best hypothesis of each utterance, by models and tuned weights."""
    if (args.tune is None) != (args.reference is None):
        raise JaxlmError("--tune and --reference go together: give both, or --weights alone")
    runs = [args.run, args.other] if args.other else [args.run]
    hypotheses = rescoring.read_nbest(args.nbest, args.costs)
    models = [open_model(run, args.checkpoint) for run in runs]
    names = [*(f"cost {place + 1}" for place in range(args.costs)), *map(str, runs), "words"]
    weights = np.array(args.weights or [*[1.0] * args.costs, *[0.0] * (len(runs) + 1)])
    if len(weights) != len(names) or not np.isfinite(weights).all():
        raise JaxlmError(f"--weights takes {len(names)} finite numbers, of {', '.join(names)}")
    if args.tune:
        tuning_list = rescoring.read_nbest(args.tune, args.costs)
        errors = rescoring.errors_of(tuning_list, args.reference)
        costs = rescoring.costs_of(tuning_list, models)
        untuned = rescoring.best(tuning_list, costs @ weights)
        weights = rescoring.tuned(tuning_list, costs, errors, weights)
        tuned = rescoring.best(tuning_list, costs @ weights)
        shown = ", ".join(f"{name} {w:.4g}" for name, w in zip(names, weights, strict=True))
        counts = f"{errors[untuned].sum():,} word errors become {errors[tuned].sum():,}"
        say_line(f"{counts} in {len(tuned):,} utterances with: {shown}", sys.stderr)
    for place in rescoring.best(hypotheses, rescoring.costs_of(hypotheses, models) @ weights):
        say_line(f"{hypotheses[place].utterance} {hypotheses[place].text}".rstrip())
