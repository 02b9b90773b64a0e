"""A record of the speedrun as a directory, and its check from that directory alone.

    DIR/record.json    what is claimed: seeds, seconds, results, mean and interval, the unit
    DIR/seed0, ...     the run directory of each seed, as `jaxlm train` has left it

`verify` believes nothing that it can compute. It refuses a record by sentences that begin with what
is wrong, as in "another text: ...".

The last windows of each run are trained again, from its last checkpoint but one.

A run that was resumed is refused too. Each session reads the test split at its end, and a log that
is resumed from an earlier step no longer says so: whether the test was looked at before the run's
end cannot be told from such a directory. Neither can seconds be computed: a log of times that was
rewritten without a contradiction is believed.
"""

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple, Protocol

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.base.files import Folder
from jaxlm.base.hashed_json import strict_json
from jaxlm.base.terminal import say_line
from jaxlm.config.config import Config
from jaxlm.data.corpus import Corpus
from jaxlm.data.windows import batch
from jaxlm.runs.checkpoint import manifests
from jaxlm.runs.directory import drew_params, problems, saved_config, saved_record, session
from jaxlm.runs.metrics import read_metrics, read_timing
from jaxlm.runs.run import window_plan
from jaxlm.runs.training_corpus import with_corpus

SEEDS = [0, 1, 2]
# Student's t at 97.5% with as many degrees of freedom as the seeds have.
QUANTILE = 4.302652729749464
TENSORFLOW_STEPS = 11_610
# The unit is measured before the first run and after each, in so many turns of so many steps.
TURNS = 3
STEPS_OF_A_TURN = 16
LEAST_TURNS = TURNS * (1 + len(SEEDS))
START = 120.0  # seconds that a command may take beside its epochs: imports, text and compilation
MOST_BYTES = 1 << 24  # of record.json
MOST = 1e12  # the largest number of record.json
CLAIMS = ("preset", "target", "corpus", "measure", "seeds", "unit", "runs", "mean", "interval")
OF_A_RUN = ("seconds", "epoch", "valid", "test")


class Rung(NamedTuple):
    """What a preset is trained on, and up to which result the clock runs."""

    target: float  # on validation, at which the clock stops
    corpus: str = "ptb"
    measure: str = "perplexity"


def summary(results: list[float]) -> tuple[float, list[float]]:
    """The mean of three seeds' results, and the ends of its interval of 95%."""
    centre = mean(results)
    half = QUANTILE * stdev(results) / math.sqrt(len(results))
    return centre, [centre - half, centre + half]


def unit_seconds(unit: dict[str, Any]) -> float:
    """The seconds of TensorFlow's whole training of `small`, by the median of its steps."""
    return TENSORFLOW_STEPS * median(unit["step_seconds"])


def machine(session: dict[str, Any]) -> dict[str, Any]:
    """The machine of a run's session, as `run.json` has it."""
    return {name: session["platform"][name] for name in ("system", "machine", "cpus")}


class Result(Protocol):
    """What a record has of each run."""

    seed: int
    seconds: float | None
    epoch: int | None
    valid: float
    test: float


def claims(
    preset: str, rung: Rung, results: Sequence[Result], step_seconds: Sequence[float]
) -> dict[str, Any]:
    """What a record claims, as `record.json` has it.

    Args:
        preset: the rung's name.
        rung: its target, text and measure.
        results: those of three seeds, in order.
        step_seconds: what a step of TensorFlow took in each turn.
    """
    centre, interval = summary([result.test for result in results])
    unit: dict[str, Any] = {
        "preset": "small",
        "step_seconds": [*step_seconds],
        "machine": machine(session()),
    }
    return {
        "preset": preset,
        **rung._asdict(),
        "seeds": [result.seed for result in results],
        "unit": unit | {"seconds": unit_seconds(unit)},
        "runs": [{name: getattr(result, name) for name in OF_A_RUN} for result in results],
        "mean": centre,
        "interval": interval,
    }


def verify(folder: Path, rungs: dict[str, Rung], data_dir: Path | None = None) -> list[str]:
    """What is wrong with a record.

    Args:
        folder: the record's directory.
        rungs: the target, text and measure of each preset.
        data_dir: the folder of Penn Treebank's files.

    Returns:
        A sentence for each thing that is wrong; none, where the record holds.
    """
    try:
        with Folder.open(folder) as opened:
            record = strict_json(opened.read("record.json", MOST_BYTES))
        wrong = list(_wrong_claims(record, folder, rungs))
        if wrong:
            return wrong
        # A text may change options: `ptb-char` strips its lines.
        preset = jaxlm.preset(record["preset"])
        expected, corpus = with_corpus(preset, record["corpus"], data_dir)
        for seed in SEEDS:
            lines = _wrong_run(record, folder, expected.replace(seed=seed), corpus)
            wrong += [f"seed {seed}: {line}" for line in lines]
        wrong += _wrong_sessions(record, folder)
        if wrong:
            return wrong
        for seed in SEEDS:
            run_dir = folder / f"seed{seed}"
            wrong += [f"seed {seed}: {line}" for line in _wrong_end(run_dir, corpus)]
        return wrong
    except FileNotFoundError as error:
        return [f"incomplete: there is no {error.filename}"]
    except (JaxlmError, OSError, ValueError, KeyError, TypeError) as error:
        return [f"unreadable: {error}"]


def say_verdict(folder: Path, wrong: Sequence[str]) -> None:
    """Prints what is wrong with a record, or that it holds.

    Args:
        folder: the record's directory.
        wrong: a sentence for each thing that is wrong.

    Raises:
        SystemExit: it does not hold.
    """
    for line in wrong or [f"{folder} holds"]:
        say_line(line)
    if wrong:
        raise SystemExit(1)


def _checked_numbers(record: dict[str, Any]) -> None:
    """Raises ValueError for a claim that is no finite number, or for an interval without two ends.

    A run that never reached the target has no epoch.
    """
    unit = record["unit"]
    low, high = record["interval"]
    numbers = [record["target"], record["mean"], low, high, unit["seconds"], *unit["step_seconds"]]
    for run in record["runs"]:
        numbers += [run["valid"], run["test"]]
        if run["epoch"] is not None:
            numbers += [run["epoch"], run["seconds"]]
    for number in numbers:
        if not isinstance(number, int | float) or not abs(number) < MOST:
            raise ValueError(f"record.json has {str(number)[:20]} for a number below {MOST:g}")


def _wrong_claims(record: dict[str, Any], folder: Path, rungs: dict[str, Rung]) -> Iterator[str]:
    """What record.json claims against the table of rungs and its own numbers."""
    missing = [name for name in CLAIMS if name not in record]
    if missing:
        yield f"incomplete: record.json has no {', '.join(missing)}"
        return
    rung = rungs.get(record["preset"])
    if rung is None:
        yield f"another preset: {record['preset']} is no rung"
        return
    if record["corpus"] != rung.corpus:
        yield f"another text: {record['corpus']} in place of {rung.corpus}"
    if record["measure"] != rung.measure:
        yield f"another measure: {record['measure']} in place of {rung.measure}"
    if record["target"] != rung.target:
        yield f"another target: {record['target']} in place of {rung.target}"
    links = [path.name for path in folder.iterdir() if path.is_symlink()]
    if links:
        yield f"another directory: {links[0]} is a link"
    directories = sorted(path.name for path in folder.iterdir() if path.is_dir())
    seeds = [f"seed{seed}" for seed in SEEDS]
    if record["seeds"] != SEEDS or len(record["runs"]) != len(SEEDS) or directories != seeds:
        yield f"selected seeds: {directories}, claimed {record['seeds']}; a record has {SEEDS}"
        return
    missing = [name for name in OF_A_RUN for run in record["runs"] if name not in run]
    if missing:
        yield f"incomplete: a run of record.json has no {missing[0]}"
        return
    _checked_numbers(record)
    steps = record["unit"]["step_seconds"]
    if record["unit"]["preset"] != "small" or len(steps) < LEAST_TURNS or min(steps) <= 0:
        yield f"another unit: at least {LEAST_TURNS} turns of `small`, found {len(steps)}"
    elif not math.isclose(record["unit"]["seconds"], unit_seconds(record["unit"]), rel_tol=1e-9):
        yield (
            f"another unit: {record['unit']['seconds']:,.0f} s claimed, "
            f"its steps say {unit_seconds(record['unit']):,.0f}"
        )
    centre, interval = summary([run["test"] for run in record["runs"]])
    if not math.isclose(record["mean"], centre, rel_tol=1e-9):
        yield f"another mean: {record['mean']} claimed, the runs have {centre}"
    elif not all(map(_close, record["interval"], interval)):
        yield f"another interval: {record['interval']} claimed, the runs have {interval}"


def _close(claimed: float, computed: float) -> bool:
    return math.isclose(claimed, computed, rel_tol=1e-9)


def _wrong_run(
    record: dict[str, Any], folder: Path, expected: Config, corpus: Corpus
) -> Iterator[str]:
    """What a run's directory has against what is claimed of it, and against a config."""
    seed = expected.train.seed
    run_dir = folder / f"seed{seed}"
    claim = record["runs"][seed]
    damaged = problems(run_dir)
    if damaged:
        yield f"an edited log or file: {damaged[0]}"
        return
    described = saved_record(run_dir)["corpus"]
    for name, described_by in (("text", "sha256"), ("vocabulary", "vocab_sha256")):
        if described.get(described_by) != corpus.identity[described_by]:
            yield f"another {name}: its hash is not that of {record['corpus']}"
    config = saved_config(run_dir)
    expected = expected.replace(compute_dtype=config.model.compute_dtype)
    changed = _changed(strict_json(expected.to_json()), strict_json(config.to_json()))
    if changed:
        yield f"another config: {', '.join(changed)}"
        return
    if not drew_params(run_dir):
        yield "a warm start: its parameters were not drawn from the seed"
    sessions = saved_record(run_dir)["sessions"]
    if len(sessions) > 1:
        yield f"a test peeked at: it was trained in {len(sessions)} sessions, each with an end"
    rows = read_metrics(run_dir)
    yield from _wrong_log(rows, config, corpus)
    yield from _wrong_start(rows, config, corpus)
    yield from _wrong_time(record, claim, rows, run_dir, config)
    yield from _wrong_results(record, claim, rows, run_dir, corpus)


def _changed(expected: Any, actual: Any, name: str = "") -> list[str]:
    """The fields in which two configs as JSON differ; the preset's name is no field."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        lines = []
        for key in sorted((expected.keys() | actual.keys()) - {"sha256", "preset"}):
            path = f"{name}.{key}".strip(".")
            lines += _changed(expected.get(key), actual.get(key), path)
        return lines
    if expected == actual:
        return []
    return [f"{name} {actual} in place of {expected}"]


def _wrong_log(rows: list[dict], config: jaxlm.Config, corpus: Corpus) -> Iterator[str]:
    """Whether each window was trained once, in order, and test was read at the end alone."""
    plan = window_plan(config, len(batch(corpus.train, config.train.batch_size)))
    windows = [row for row in rows if row["kind"] == "window"]
    if [row["step"] for row in windows] != list(range(1, plan.total + 1)):
        yield f"skipped windows: {len(windows):,} of {plan.total:,} are in the log"
    if not all(math.isfinite(row["cost"]) for row in windows):
        yield "skipped windows: a cost is not finite"
    epochs = [row["epoch"] for row in rows if row["kind"] == "epoch"]
    if epochs != list(range(1, config.train.epochs + 1)):
        yield f"a missing validation: of the epochs {config.train.epochs}, {len(epochs)} have one"
    kinds = [row["kind"] for row in rows]
    tests = kinds.count("test")
    if not tests:
        yield "an unfinished run: test was not read"
    elif "test" in kinds[:-tests]:
        yield "a test peeked at: it was read before the run's end"


def _wrong_start(rows: list[dict], config: jaxlm.Config, corpus: Corpus) -> Iterator[str]:
    """Whether the first window's cost is that of parameters drawn from the seed."""
    first = next((row["cost"] for row in rows if row["kind"] == "window"), math.nan)
    with tempfile.TemporaryDirectory() as folder:
        jaxlm.train(config, corpus, Path(folder) / "run", steps=1, quiet=True)
        drawn = read_metrics(Path(folder) / "run")[0]["cost"]
    if not math.isclose(first, drawn, rel_tol=1e-3):
        yield f"a warm start: the first window cost {first}, drawn parameters cost {drawn}"


def _wrong_end(run_dir: Path, corpus: Corpus) -> Iterator[str]:
    """Whether the windows after the last checkpoint but one give the results that were logged."""
    steps = list(manifests(run_dir))
    if len(steps) < 2:
        yield f"incomplete: it has the checkpoints {steps}, and its last two are needed"
        return
    with tempfile.TemporaryDirectory() as folder:
        again = Path(shutil.copytree(run_dir, Path(folder) / "run"))
        shutil.rmtree(again / "checkpoints" / f"{steps[-1]:08d}")
        jaxlm.train(saved_config(run_dir), corpus, again, resume=True, quiet=True)
        repeated = read_metrics(again)
    for row, other in zip(read_metrics(run_dir), repeated, strict=False):
        for name in ("cost", "valid_perplexity", "test_perplexity"):
            value = row.get(name, 0.0)
            if not math.isclose(value, other.get(name, 0.0), rel_tol=1e-3):
                step = row["step"]
                yield f"another training: {name} {value} at {step}, again {other.get(name)}"
                return


def _wrong_time(
    record: dict[str, Any],
    claim: dict[str, Any],
    rows: list[dict],
    run_dir: Path,
    config: jaxlm.Config,
) -> Iterator[str]:
    """Whether the claimed seconds hold the epochs up to the target, by the run's own log."""
    name = f"valid_{record['measure']}"
    reached = [
        row["epoch"] for row in rows if row["kind"] == "epoch" and row[name] <= record["target"]
    ]
    if (reached or [None])[0] != claim["epoch"]:
        yield f"another epoch: {claim['epoch']} claimed, the log has {(reached or ['none'])[0]}"
        return
    timing = read_timing(run_dir)
    count = claim["epoch"] or config.train.epochs
    epochs = list(range(1, config.train.epochs + 1))
    log = run_dir / "timing.jsonl"
    if list(timing) != epochs or len(log.read_bytes().splitlines()) != len(epochs):
        yield "an edited time: its log has not each epoch once"
        return
    words = [timing[epoch]["seconds"] * timing[epoch]["words_per_second"] for epoch in timing]
    if min(row["seconds"] for row in timing.values()) <= 0:
        yield "an edited time: an epoch took no time"
    if any(not math.isclose(a, b, rel_tol=0.02) for a, b in pairwise(words)):
        yield "an edited time: seconds and words a second do not make an epoch's words"
    least = sum(timing[epoch]["seconds"] for epoch in range(1, count + 1))
    if claim["epoch"] and not least <= claim["seconds"] <= least + START:
        yield f"another time: {claim['seconds']:.1f} s claimed, its epochs took {least:.1f}"


def _wrong_results(
    record: dict[str, Any],
    claim: dict[str, Any],
    rows: list[dict],
    run_dir: Path,
    corpus: Corpus,
) -> Iterator[str]:
    """Whether the results are those of the last parameters, evaluated again, to the last digit."""
    measure = record["measure"]
    epochs = [row[f"valid_{measure}"] for row in rows if row["kind"] == "epoch"]
    tests = [row for row in rows if row["kind"] == "test"]
    if not (epochs and tests):
        return
    last = [row[f"test_{measure}"] for row in tests if row["checkpoint"] == "last"]
    if claim["test"] not in last:
        yield f"chosen by test: {claim['test']} claimed, the last parameters have {last}"
    if claim["valid"] != epochs[-1]:
        yield f"another result: valid {claim['valid']} claimed, the log has {epochs[-1]}"
    lm = jaxlm.load(run_dir)
    for split in ("valid", "test"):
        evaluated = getattr(lm.evaluate(split, corpus=corpus), measure)
        if evaluated != claim[split]:
            yield f"other parameters: {split} is {evaluated} by them, {claim[split]} claimed"


def _wrong_sessions(record: dict[str, Any], folder: Path) -> Iterator[str]:
    """Whether all seeds were trained by one version on one kind of machine, that of the unit.

    No two have the same seconds.
    """
    run_dirs = [folder / f"seed{seed}" for seed in SEEDS]
    sessions = [session for run in run_dirs for session in saved_record(run)["sessions"]]
    surroundings = [(session.get("versions"), session.get("platform")) for session in sessions]
    if any(other != surroundings[0] for other in surroundings):
        yield "other machines or versions: the sessions of the seeds differ"
    if record["unit"].get("machine") != machine(sessions[0]):
        yield "another unit: it was measured on another machine than the runs"
    seconds = [row["seconds"] for run in run_dirs for row in read_timing(run).values()]
    if len(set(seconds)) < len(seconds):
        yield "an edited time: two epochs have the same seconds to the last digit"
