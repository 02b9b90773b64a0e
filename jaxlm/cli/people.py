"""The verbs that compare models with people: `jaxlm babylm`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxlm.cli.arguments import JSON, MODEL, choice, command, pathname
from jaxlm.cli.opening import open_model
from jaxlm.cli.tables import json_text
from jaxlm.ngrams.folder import is_ngram_folder
from jaxlm.runs import checkpoint
from jaxlm.runs.loading import load
from jaxlm.scoring.babylm import Score
from jaxlm.scoring.babylm import babylm as scores_of
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.terminal import say, say_line


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
