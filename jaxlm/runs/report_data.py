"""What a report page shows of runs: read from their directories, and computed by their models."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxlm.data.corpora import reload_corpus
from jaxlm.errors import DataError, JaxlmError, RunDirError
from jaxlm.fields import setting_text
from jaxlm.report.curve import by_kind
from jaxlm.report.page import ModelView, RunRecord, ScoredText
from jaxlm.report.word_map import map_words
from jaxlm.runs import checkpoint, directory
from jaxlm.runs.loading import load
from jaxlm.runs.metrics import read_metrics, read_timing
from jaxlm.scoring.language_model import LanguageModel

TEST_WORDS = 400  # of the test split's beginning
SAMPLES, SAMPLE_WORDS = 3, 80

Found = TypeVar("Found")


def run_record(path: Path, name: str | None = None) -> RunRecord:
    """The results and surroundings of the run in a directory; the page calls it by `name` (default: the directory's).

    Raises:
        RunDirError: There is no run, or a file of it is damaged.
        JaxlmError: No epoch has finished.
    """
    config = directory.saved_config(path)
    if problems := directory.problems(path):
        raise RunDirError(
            f"the run in {path} is damaged, and there is no report of it: {problems[0]}; `jaxlm info` "
            f"lists all problems"
        )
    rows = read_metrics(path)
    windows, epochs, tests = by_kind(rows)
    if not epochs:
        raise JaxlmError(
            f"the run in {path} has no results: expected a finished epoch, found {len(windows):,} "
            f"windows; train one epoch first"
        )
    record = directory.saved_record(path)
    kinds = [("kinds", slot, kind, "") for slot, kind in config.kinds.items()]
    fields = [(section, field, setting_text(value), spec.unit) for section, field, spec, value in config.every_field()]
    return RunRecord(
        name=name or path.resolve().name,
        windows=windows,
        epochs=epochs,
        tests=tests,
        bptt_length=config.train.bptt_length,
        path=str(path),
        preset=config.preset,
        seed=config.train.seed,
        fields=[*kinds, *fields],
        corpus=record["corpus"],
        sessions=record["sessions"],
        checkpoints=[(step, found.epoch, found.valid_perplexity) for step, found in checkpoint.manifests(path).items()],
        timing=[{"epoch": epoch, **row} for epoch, row in sorted(read_timing(path).items())],
    )


def best_run(runs: Sequence[RunRecord]) -> RunRecord:
    """The run with the lowest validation perplexity."""
    return min(runs, key=lambda run: (math.isnan(run.valid_perplexity), run.valid_perplexity))


def model_view(
    path: Path, name: str, which: str = "last", texts: Sequence[str] = (), data_dir: str | Path | None = None
) -> ModelView:
    """What a run's model makes of its words, of text, and what it generates; notes name what cannot be computed.

    Args:
        path, name: the run's directory, and what the page calls the run.
        which: `last`, `best` (on validation), or a step.
        texts: to score, beside the test split's beginning.
        data_dir: the folder of Penn Treebank's files.
    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
        DataError: A text has no words.
    """
    lm = load(path, which)
    notes: list[str] = []

    def part(what: str, make: Callable[[], Found]) -> Found | None:
        try:
            return make()
        except JaxlmError as error:
            notes.append(f"There is no {what}: {error}.")
            return None

    words = part("map of the words", lambda: map_words(np.asarray(lm.params["embedding"]), lm.vocab.words))
    test = part("text of the test split", lambda: _test_text(lm, data_dir))
    samples = part(
        "sample", lambda: [str(text) for text in lm.generate(words=SAMPLE_WORDS, samples=SAMPLES, no_unk=True)]
    )
    own = [_scored(lm, f"Text {place}", [*filter(str.strip, text.splitlines())]) for place, text in enumerate(texts, 1)]
    return ModelView(name, which, words, [*([test] if test else []), *own], samples or [], notes)


def _test_text(lm: LanguageModel, data_dir: str | Path | None) -> ScoredText:
    """The beginning of the run's own test split."""
    corpus = reload_corpus(lm.config.data, lm.vocab, data_dir)
    if corpus.sha256 != lm.corpus["sha256"]:
        raise DataError(
            f"the model was trained on {lm.corpus['name']} with sha256 {lm.corpus['sha256']}, and the "
            f"corpus found has {corpus.sha256}"
        )
    ids = corpus.test[:TEST_WORDS]
    lines = [line if lm.vocab.kind != "words" else line.split() for line in lm.vocab.decode_text(ids).split("\n")]
    lines = [*filter(None, lines)]
    return _scored(lm, f"The beginning of the test split of {corpus.name}", lines)


def _scored(lm: LanguageModel, title: str, lines: Sequence[str | list[str]]) -> ScoredText:
    """Lines of words with their surprisals; the state is passed on from line to line."""
    score = lm.surprisal if lm.vocab.kind == "words" else lm.word_surprisal
    found = score(lines, context="stream", eos=True)
    return ScoredText(title, found.word, [round(float(bits), 4) for bits in found.surprisal])
