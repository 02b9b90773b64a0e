"""experiments/mixtures.py: a record of a mixture holds by its own directories alone."""

import json
import math
import shutil
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

import pytest

import jaxlm
from jaxlm.config import config as configs
from jaxlm.config.protocols import Interpolation
from jaxlm.runs.metrics import read_timing

QUANTILE = 4.302652729749464  # Student's t at 97.5% with two degrees of freedom
ROOT = Path(__file__).resolve().parents[1]
FIELDS = dict(corpus="embedded-tiny", hidden_sizes=[4], embedding_size=4, batch_size=400, epochs=2)


@pytest.fixture(scope="module")
def mixtures():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        patch.setitem(configs.PRESETS, "tiny-rung", {"base": "test", **FIELDS})
        import mixtures  # pyright: ignore[reportMissingImports]

        patch.setitem(mixtures.MIXTURES, "tiny-mix", ("tiny-rung", "tiny-rung-2"))
        patch.setattr(mixtures, "ORDER", 1)  # so that the networks count
        patch.setattr(mixtures.records, "verify", _verified)
        yield mixtures


def _verified(folder: Path, _: Any) -> list[str]:
    """Stands for the check of a member, which has tests of its own."""
    return ["a lucky seed"] if (folder / "seed3").exists() else []


@pytest.fixture(scope="module")
def record(mixtures, tmp_path_factory) -> SimpleNamespace:
    """A record that holds: three seeds of a mixture of two tiny rungs."""
    folder = tmp_path_factory.mktemp("record") / "tiny"
    config = jaxlm.preset("test").replace(**FIELDS)
    corpus = jaxlm.load_corpus("embedded-tiny")
    grams = folder.parent / "grams"
    jaxlm.ngram(corpus, mixtures.ORDER, grams)
    results = []
    for seed in mixtures.records.SEEDS:
        runs = [folder / member / f"seed{seed}" for member in ("tiny-rung", "tiny-rung-2")]
        for number, run in enumerate(runs):
            trained = config.replace(seed=seed, learning_rate=1.0 / (1 + number))
            jaxlm.train(trained, corpus, run, quiet=True)
        others = f"{runs[1]},{grams}"
        tuned = jaxlm.load(runs[0]).tune(Interpolation(with_=others), corpus=corpus)
        seconds = sum(epoch["seconds"] for run in runs for epoch in read_timing(run).values())
        result = {"valid": tuned.valid, "test": tuned.test.perplexity}
        results.append(SimpleNamespace(seed=seed, seconds=seconds + 1, **result))
    for run in runs:
        unit = {"unit": {"step_seconds": [0.1] * 12}}
        (run.parent / "record.json").write_text(json.dumps(unit))
    claimed = mixtures.claims("tiny-mix", results, [0.1] * 12)
    (folder / "record.json").write_text(json.dumps(claimed))
    rungs = {"tiny-rung": mixtures.records.Rung(1e9, "embedded-tiny")}
    assert mixtures.verify(folder, rungs) == []
    return SimpleNamespace(folder=folder, rungs=rungs)


def of_seed_1(**fields):
    return lambda tree: tree["runs"][1].update(fields)


def better_test(tree: dict[str, Any]) -> None:
    """A test that was never measured, with the mean and interval that follow from it."""
    tree["runs"][1]["test"] = tree["runs"][0]["test"]
    tests = [run["test"] for run in tree["runs"]]
    tree["mean"] = mean(tests)
    half = QUANTILE * stdev(tests) / math.sqrt(3)
    tree["interval"] = [tree["mean"] - half, tree["mean"] + half]


CHEATS = {
    "another mixture": ("another mixture", lambda tree: tree.update(mixture="mix-74")),
    "other members": ("another mixture", lambda tree: tree.update(members=["tiny-rung"])),
    "another order": ("another mixture", lambda tree: tree.update(order=9)),
    "chosen seeds": ("selected seeds", of_seed_1(seed=4)),
    "a better mean": ("another mean", lambda tree: tree.update(mean=1.0)),
    "another unit": ("another unit", lambda tree: tree.update(step_seconds=[9.0] * 12)),
    "a better validation": ("seed 1: another result: valid", of_seed_1(valid=1.0)),
    "a better test": ("seed 1: another result: test", better_test),
    "a better time": ("seed 1: another time", of_seed_1(seconds=1e-3)),
    "a list": ("unreadable", lambda tree: tree.update(mixture=[])),
}


def test_a_cheat_is_refused_by_its_name(mixtures, record):
    path = record.folder / "record.json"
    honest = path.read_text()
    try:
        for name, (named, cheat) in CHEATS.items():
            tree = json.loads(honest)
            cheat(tree)
            path.write_text(json.dumps(tree))
            wrong = mixtures.verify(record.folder, record.rungs)
            assert any(line.startswith(named) for line in wrong), (name, wrong)
    finally:
        path.write_text(honest)


def test_a_member_that_does_not_hold_or_is_another_is_refused(mixtures, record, tmp_path):
    folder = Path(shutil.copytree(record.folder, tmp_path / "tiny"))
    (folder / "tiny-rung/seed3").mkdir()
    assert mixtures.verify(folder, record.rungs) == ["tiny-rung: a lucky seed"]
    (folder / "tiny-rung/seed3").rmdir()
    (folder / "third").mkdir()
    assert mixtures.verify(folder, record.rungs)[0].startswith("another mixture: the folders")


def test_the_commands_mix_runs_by_the_weights_that_they_tell(mixtures, record):
    runs = [record.folder / member / "seed0" for member in ("tiny-rung", "tiny-rung-2")]
    claim = json.loads((record.folder / "record.json").read_text())["runs"][0]
    weights, valid, test, seconds = mixtures.mixed(runs, "embedded-tiny")
    assert len(weights) == 3 and sum(weights) == pytest.approx(1) and seconds > 0
    assert max(weights) < 1
    assert (valid, test) == (claim["valid"], claim["test"])
