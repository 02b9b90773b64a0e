"""`write_report`: a page about runs, n-gram models and sweeps, in one HTML file."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np

from jaxlm.base.errors import DataError, JaxlmError, RunDirError
from jaxlm.base.files import explained, output
from jaxlm.base.packaged import place_for_files
from jaxlm.data.corpus import Corpus
from jaxlm.report.curve import by_kind
from jaxlm.report.page import ModelView, RunRecord, SweepRecord, render
from jaxlm.report.sweep_files import RESULTS, read_sweep
from jaxlm.report.word_map import map_words
from jaxlm.runs import checkpoint, directory
from jaxlm.runs.loading import load, ngram_model
from jaxlm.runs.metrics import read_metrics, read_timing
from jaxlm.runs.ngram_models import baseline_text
from jaxlm.scoring.language_model import LanguageModel, NgramModel
from jaxlm.sweeps.study import check_below, member_dir

TEST_WORDS = 400  # of the test split's beginning
SAMPLES = 3
SAMPLE_WORDS = 80
LivePage = Callable[[LanguageModel], str]  # makes a page that runs a model


def write_report(
    paths: Sequence[Path],
    out: Path | None = None,
    *,
    which: str = "last",
    texts: Sequence[str] = (),
    data_dir: str | Path | None = None,
    live: LivePage | None = None,
) -> Path:
    """Writes one self-contained HTML page about runs and sweeps.

    Args:
        paths: At least one directory of a run, an n-gram model or a sweep; one that is named twice
            counts once.
        out: The file to write (default: report.html in the directory, if there is only one).
        which: The checkpoint whose words, surprisals and samples are shown: `last`, `best`, or a
            step. The run is the one with the lowest validation perplexity on each corpus; an n-gram
            model where there is no run.
        texts: Scored by the models that the page shows.
        data_dir: The folder of Penn Treebank's files.
        live: Makes a page that runs a model, for those that the page shows.

    Returns:
        The page's path.

    Raises:
        JaxlmError: A directory holds no results, or one is damaged, or the page cannot be written,
            or no page runs such a model: nothing is written then.
    """
    directories = list({path.resolve(): path for path in paths}.values())
    target = _target(directories, out)
    names = [path.resolve().name for path in directories]
    if len(set(names)) < len(names):
        names = [str(path) for path in directories]
    view = partial(_model_view, which=which, texts=texts, data_dir=data_dir, live=live)
    runs = []
    sweeps = []
    for path, name in zip(directories, names, strict=True):
        if _is_sweep(path):
            sweeps.append(_sweep_record(path, name, view))
        else:
            runs.append(run_record(path, name, data_dir))
    ranked = sorted(
        runs,
        key=lambda run: (run.order, math.isnan(run.valid_perplexity), run.valid_perplexity),
    )
    best: dict[str, RunRecord] = {}
    for run in ranked:
        best.setdefault(str(run.corpus.get("sha256")), run)
    models = [view(Path(run.path), run.name) for run in best.values()]
    title = names[0]
    if len(names) > 1:
        title = " and ".join(
            f"{len(records)} {noun}" + ("s" if len(records) > 1 else "")
            for records, noun in ((runs, "run"), (sweeps, "sweep"))
            if records
        )
    page = render(f"Report: {title}", runs, models, sweeps)
    with explained(RunDirError, f"cannot write {target}"), output(target) as file:
        file.write(page.encode())
    return target


def _target(directories: Sequence[Path], out: Path | None) -> Path:
    """The file to write. Raises JaxlmError where none is named and none is usual."""
    if out is None and len(directories) > 1:
        raise JaxlmError(
            f"a report of {len(directories)} directories needs a place: name it with -o FILE"
        )
    target = out or place_for_files(directories[0]) / "report.html"
    if target.is_dir():
        raise JaxlmError(
            f"{target} is a directory: name the file to write, as in -o {target / 'report.html'}"
        )
    return target


def _is_sweep(path: Path) -> bool:
    """Whether a directory is a sweep's. One of several that share a database may have no trial."""
    if (path / "config.json").exists():
        return False
    return (path / "trials").exists() or (path / RESULTS).exists()


def _sweep_record(
    path: Path,
    name: str,
    view: Callable[[Path, str], ModelView],
) -> SweepRecord:
    """A sweep, with a view of the model of its best member."""
    sweep, corpus = read_sweep(path)
    trials = sweep.trials
    best = sweep.best
    if best is None:
        return SweepRecord(name, corpus, trials, importances=sweep.importances)
    run_dir = member_dir(path, best.number, best.seed, trials[0].seeds)
    model = None
    if run_dir.exists():  # it may have been trained on another machine
        check_below(path, run_dir, "name the run itself")
        model = view(run_dir, f"trial {best.number}, seed {best.seed}")
    return SweepRecord(name, corpus, trials, sweep.command(best), model, sweep.importances)


def run_record(
    path: Path,
    name: str,
    data_dir: str | Path | None = None,
) -> RunRecord:
    """Reads the results and surroundings of a run; an n-gram model is evaluated.

    Args:
        path: The run directory.
        name: Unlike that of any other run on the page.
        data_dir: The folder of Penn Treebank's files.

    Raises:
        JaxlmError: The run is damaged, or has neither an epoch nor a test.
    """
    ngrams = ngram_model(path, data_dir)
    if ngrams is not None:
        return _ngram_record(ngrams, path, name)
    config = directory.saved_config(path)
    problems = directory.problems(path)
    if problems:
        raise RunDirError(
            f"the run in {path} is damaged, and there is no report of it: {problems[0]}; "
            f"`jaxlm info` lists all problems"
        )
    windows, epochs, tests = by_kind(read_metrics(path))
    if not epochs and not tests:
        raise JaxlmError(
            f"the run in {path} has no results: expected a finished epoch or a test, found "
            f"{len(windows):,} windows; train one epoch first"
        )
    record = directory.saved_record(path)
    return RunRecord(
        name=name,
        windows=windows,
        epochs=epochs,
        tests=tests,
        config=config,
        path=str(path),
        corpus=record["corpus"],
        sessions=record["sessions"],
        checkpoints=[
            (step, manifest.epoch, manifest.valid_perplexity)
            for step, manifest in checkpoint.manifests(path).items()
        ],
        timing=read_timing(path),
    )


def _ngram_record(
    lm: NgramModel,
    path: Path,
    name: str,
) -> RunRecord:
    """The results of an n-gram model; none where its text is not found."""
    about = lm.corpus
    epochs = []
    tests = []
    with suppress(DataError):
        corpus = lm.find_corpus()
        about = about | {"description": corpus.description}
        valid, test = (lm.evaluate(split, corpus=corpus) for split in ("valid", "test"))
        epochs.append({"epoch": 0, "valid_perplexity": valid.perplexity})
        row = {f"test_{measure}": value for measure, value in test._asdict().items()}
        tests.append({**row, "unknown_valid": valid.unknown, "unknown_test": test.unknown})
    return RunRecord(
        name=name,
        windows=[],
        epochs=epochs,
        tests=tests,
        config=lm.config,
        path=str(path),
        corpus=about,
        order=lm.ngram.order,
        grams=lm.ngram.grams,
    )


def _model_view(
    path: Path,
    name: str,
    which: str,
    texts: Sequence[str],
    data_dir: str | Path | None,
    live: LivePage | None,
) -> ModelView:
    """A run's map of words, surprisals of texts, and samples; notes name what there is not."""
    lm = load(path, which, data_dir)
    vocab = lm.vocab
    notes: list[str] = []

    @contextmanager
    def noted(missing: str) -> Iterator[None]:
        try:
            yield
        except JaxlmError as error:
            notes.append(f"There is no {missing}: {error}.")

    words = None
    scored = {}
    samples = []
    if isinstance(lm, NgramModel):
        which = ""  # It has neither checkpoints nor an embedding.
    if which:
        with noted(f"map of the {vocab.kind}"):
            words = map_words(np.asarray(lm.params["embedding"]), vocab.words, tokens=vocab.kind)
    baseline = ""
    with noted("text of the test split"):
        corpus = lm.find_corpus()
        scored |= _test_text(lm, corpus)
        if which:
            baseline = baseline_text(corpus, lm.config.train.baseline_order)
    for number, text in enumerate(texts, 1):
        scored[f"Text {number}"] = _scored(lm, list(filter(str.strip, text.splitlines())))
    with noted("sample"):
        samples += map(str, lm.generate(words=SAMPLE_WORDS, samples=SAMPLES, no_unk=True))
    page = live(lm) if live else ""
    return ModelView(name, which, words, scored, samples, notes, page, baseline)


def _test_text(lm: LanguageModel, corpus: Corpus) -> dict[str, list[tuple[str, float]]]:
    """The scored beginning of the run's own test split, by its title."""
    tokens_are_words = lm.vocab.kind == "words"
    text = lm.vocab.decode_text(corpus.test[:TEST_WORDS])
    lines = [line.split() if tokens_are_words else line for line in text.split("\n")]
    scored = _scored(lm, list(filter(None, lines)))
    if not text.endswith("\n"):
        # The last line is cut: leave out its `<eos>`, and its last word, which may be cut too.
        scored = scored[:-1]
        if not tokens_are_words and len(scored) > 1:
            scored = scored[:-1]
    return {f"The beginning of the test split of {corpus.name}": scored}


def _scored(lm: LanguageModel, lines: Sequence[str | list[str]]) -> list[tuple[str, float]]:
    """Words of lines with their surprisals in bits, nan where unknown, as one text."""
    score = lm.surprisal if lm.vocab.kind == "words" else lm.word_surprisal
    surprisals = score(lines, context="stream", eos=True)
    return [
        (word, round(float(bits), 4))
        for word, bits in zip(surprisals.word, surprisals.surprisal, strict=True)
    ]
