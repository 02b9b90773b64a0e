"""`write_report`: a page about runs and sweeps, in one HTML file."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import JaxlmError, RunDirError
from jaxlm.files import explained, output
from jaxlm.report.curve import by_kind
from jaxlm.report.page import ModelView, RunRecord, SweepRecord, render
from jaxlm.report.word_map import map_words
from jaxlm.runs import checkpoint, directory
from jaxlm.runs.loading import load
from jaxlm.runs.metrics import read_metrics, read_timing
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.sweeps.results import RESULTS, read_sweep
from jaxlm.sweeps.study import check_below, member_dir

TEST_WORDS = 400  # of the test split's beginning
SAMPLES = 3
SAMPLE_WORDS = 80


def write_report(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    which: str = "last",
    texts: Sequence[str] = (),
    data_dir: str | Path | None = None,
) -> Path:
    """Writes one self-contained HTML page about runs and sweeps; returns its path.

    Args:
        paths: Directories of runs and of sweeps; one that is named twice counts once.
        out: The file to write (default: report.html in the directory, if there is only one).
        which: The checkpoint whose words, surprisals and samples are shown: `last`, `best`, or a step. The run is the
            one with the lowest validation perplexity on each corpus.
        texts: Scored by the models that the page shows.
        data_dir: The folder of Penn Treebank's files.

    Raises:
        JaxlmError: A directory holds no results, or one is damaged, or the page cannot be written: nothing is then.
    """
    named = [paths] if isinstance(paths, str | Path) else paths
    directories = list({Path(path).resolve(): Path(path) for path in named}.values())
    if not directories:
        raise JaxlmError("a report needs at least one directory of a run or a sweep: name one")
    if out is None and len(directories) > 1:
        raise JaxlmError(
            f"a report of {len(directories)} directories needs a place: name it with -o FILE"
        )
    target = Path(out) if out is not None else directories[0] / "report.html"
    if target.is_dir():
        raise JaxlmError(
            f"{target} is a directory: name the file to write, as in -o {target / 'report.html'}"
        )
    names = [path.resolve().name for path in directories]
    if len(set(names)) < len(names):
        names = [str(path) for path in directories]
    runs = []
    sweeps = []
    for path, name in zip(directories, names, strict=True):
        # (Of machines that share a sweep's database, one may have none of the trials.)
        if (
            any((path / one).exists() for one in ("trials", RESULTS))
            and not (path / "config.json").exists()
        ):
            sweeps.append(_sweep_record(path, name, which, texts, data_dir))
        else:
            runs.append(run_record(path, name))
    ranked = sorted(runs, key=lambda run: (math.isnan(run.valid_perplexity), run.valid_perplexity))
    best = {str(run.corpus.get("sha256")): run for run in reversed(ranked)}
    models = [
        _model_view(Path(run.path), run.name, which, texts, data_dir) for run in best.values()
    ]
    counts = [
        f"{len(some)} {what}{'s' * (len(some) > 1)}"
        for some, what in ((runs, "run"), (sweeps, "sweep"))
        if some
    ]
    title = names[0] if len(names) == 1 else " and ".join(counts)
    page = render(f"Report: {title}", runs, models, sweeps)
    with explained(RunDirError, f"cannot write {target}"), output(target) as file:
        file.write(page.encode())
    return target


def _sweep_record(
    path: Path, name: str, which: str, texts: Sequence[str], data_dir: str | Path | None
) -> SweepRecord:
    """A sweep, with a view of the model of its best member."""
    sweep, corpus = read_sweep(path)
    best = sweep.best
    if best is None:
        return SweepRecord(name, corpus, sweep.trials)
    own = member_dir(
        path, best.number, best.seed, sweep.trials[0].seeds
    )  # (the sweep may be moved)
    kept = own.exists()
    if kept:  # (else it is on another machine)
        check_below(path, own, "name the run itself")
    title = f"trial {best.number}, seed {best.seed}"
    model = _model_view(own, title, which, texts, data_dir) if kept else None
    return SweepRecord(name, corpus, sweep.trials, sweep.command(best), model)


def run_record(path: Path, name: str) -> RunRecord:
    """The results and surroundings of the run in a directory. Raises JaxlmError where it is damaged or has no epoch."""
    config = directory.saved_config(path)
    problems = directory.problems(path)
    if problems:
        problem = f"the run in {path} is damaged, and there is no report of it: {problems[0]}"
        raise RunDirError(f"{problem}; `jaxlm info` lists all problems")
    rows = read_metrics(path)
    windows, epochs, tests = by_kind(rows)
    if not epochs:
        found = f"expected a finished epoch, found {len(windows):,} windows"
        raise JaxlmError(f"the run in {path} has no results: {found}; train one epoch first")
    record = directory.saved_record(path)
    return RunRecord(
        name=name,
        windows=windows,
        epochs=epochs,
        tests=tests,
        bptt_length=config.train.bptt_length,
        path=str(path),
        config=config,
        corpus=record["corpus"],
        sessions=record["sessions"],
        checkpoints=[
            (step, found.epoch, found.valid_perplexity)
            for step, found in checkpoint.manifests(path).items()
        ],
        timing=read_timing(path),
    )


def _model_view(
    path: Path, name: str, which: str, texts: Sequence[str], data_dir: str | Path | None
) -> ModelView:
    """A model's map of its words, surprisals of texts, and samples; notes name what cannot be computed."""
    lm = load(path, which)
    notes: list[str] = []

    def part(what: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except JaxlmError as error:
            notes.append(f"There is no {what}: {error}.")
            return None

    words = part(
        "map of the words", lambda: map_words(np.asarray(lm.params["embedding"]), lm.vocab.words)
    )
    scored = part("text of the test split", lambda: _test_text(lm, data_dir)) or {}
    scored |= {
        f"Text {at}": _scored(lm, [*filter(str.strip, text.splitlines())])
        for at, text in enumerate(texts, 1)
    }
    samples = part(
        "sample", lambda: [*map(str, lm.generate(words=SAMPLE_WORDS, samples=SAMPLES, no_unk=True))]
    )
    return ModelView(name, which, words, scored, samples or [], notes)


def _test_text(
    lm: LanguageModel, data_dir: str | Path | None
) -> dict[str, list[tuple[str, float]]]:
    """The scored beginning of the run's own test split, by its title."""
    corpus = lm.find_corpus(data_dir=data_dir)
    text = lm.vocab.decode_text(corpus.test[:TEST_WORDS])
    lines = [line.split() if lm.vocab.kind == "words" else line for line in text.split("\n")]
    scored = _scored(lm, [*filter(None, lines)])
    if not text.endswith("\n"):  # what is cut has no end of its line, nor of its word
        scored = scored[:-1]
        scored = scored if lm.vocab.kind == "words" else scored[:-1] or scored
    return {f"The beginning of the test split of {corpus.name}": scored}


def _scored(lm: LanguageModel, lines: Sequence[str | list[str]]) -> list[tuple[str, float]]:
    """Words of lines with their surprisals in bits, nan where unknown; the state is passed on from line to line."""
    score = lm.surprisal if lm.vocab.kind == "words" else lm.word_surprisal
    found = score(lines, context="stream", eos=True)
    return [
        (word, round(float(bits), 4))
        for word, bits in zip(found.word, found.surprisal, strict=True)
    ]
