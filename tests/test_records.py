"""experiments/records.py and mixtures.py: a record of the speedrun or of a mixture holds by its own
directories, and every cheat is refused by its name.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jaxlm
from jaxlm.base.hashed_json import from_hashed_json, to_hashed_json
from jaxlm.config import config as configs
from jaxlm.config.protocols import Interpolation
from jaxlm.runs.metrics import read_metrics, read_timing

ROOT = Path(__file__).resolve().parents[1]
FIELDS = dict(corpus="embedded-tiny", hidden_sizes=[4], embedding_size=4, batch_size=400, epochs=2)
CONFIG = jaxlm.preset("test").replace(**FIELDS)


@pytest.fixture(scope="module")
def records():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        patch.setitem(configs.PRESETS, "tiny-rung", {"base": "test", **FIELDS})
        import records  # pyright: ignore[reportMissingImports]

        yield records


def claimed(
    records, folder: Path, preset: str = "tiny-rung", corpus: str = "embedded-tiny"
) -> dict[str, Any]:
    """A true record of the runs in a folder."""
    results = []
    for seed in records.SEEDS:
        rows = read_metrics(folder / f"seed{seed}")
        results.append(
            SimpleNamespace(
                seed=seed,
                seconds=read_timing(folder / f"seed{seed}")[1]["seconds"] + 1,
                epoch=1,
                valid=[row for row in rows if row["kind"] == "epoch"][-1]["valid_perplexity"],
                test=rows[-1]["test_perplexity"],
            )
        )
    turns = 12  # of three seeds, as speedrun.py has them
    return records.claims(preset, records.Rung(1e9, corpus), results, [0.1] * turns)


def recorded(
    records, folder: Path, config: jaxlm.Config, preset: str, data_dir: Path | None = None
) -> SimpleNamespace:
    """A record that holds: three seeds of a tiny rung."""
    for seed in records.SEEDS:
        run_dir = folder / f"seed{seed}"
        jaxlm.train(config.replace(seed=seed), None, run_dir, data_dir=data_dir, quiet=True)
    corpus = config.data.corpus
    (folder / "record.json").write_text(json.dumps(claimed(records, folder, preset, corpus)))
    rungs = {preset: records.Rung(1e9, corpus)}
    assert records.verify(folder, rungs, data_dir) == []
    return SimpleNamespace(folder=folder, rungs=rungs)


@pytest.fixture(scope="module")
def record(records, tmp_path_factory) -> SimpleNamespace:
    return recorded(records, tmp_path_factory.mktemp("record") / "tiny", CONFIG, "tiny-rung")


def test_a_rung_reads_its_text_as_its_preset_says(records, tmp_path, monkeypatch):
    monkeypatch.setitem(configs.PRESETS, "lower", {"base": "tiny-rung", "lowercase": True})
    recorded(records, tmp_path, CONFIG.replace(lowercase=True), "lower")


@pytest.mark.slow
def test_a_rung_of_a_text_with_options_of_its_own_holds(records, tmp_path, monkeypatch, ptb_dir):
    fields = {**FIELDS, "corpus": "ptb-char", "tokens": "characters", "batch_size": 4000}
    monkeypatch.setitem(configs.PRESETS, "of-characters", {"base": "test", **fields})
    recorded(records, tmp_path, jaxlm.preset("of-characters"), "of-characters", ptb_dir)


def edited(path: Path, change) -> None:
    """Changes a file of JSON in place; one that carries its hash gets a new hash."""
    text = path.read_text()
    hashed = path.name in ("config.json", "manifest.json")
    tree = from_hashed_json(text.encode()) if hashed else json.loads(text)
    change(tree)
    path.write_text(to_hashed_json(tree) if hashed else json.dumps(tree))


def claims(**fields):
    return lambda folder: edited(folder / "record.json", lambda tree: tree.update(fields))


def claims_of_seed_1(**fields):
    return lambda folder: edited(
        folder / "record.json", lambda tree: tree["runs"][1].update(fields)
    )


def another_unit(folder: Path) -> None:
    edited(folder / "record.json", lambda tree: tree["unit"].update(seconds=9e9))


def few_steps(folder: Path) -> None:
    edited(folder / "record.json", lambda tree: tree["unit"].update(step_seconds=[0.1] * 11))


def lucky_seed(folder: Path) -> None:
    for seed in (3, 4):
        shutil.copytree(folder / "seed1", folder / f"seed{seed}")


def linked_seed(folder: Path) -> None:
    (folder / "seed2").rename(folder.parent / "elsewhere")
    (folder / "seed2").symlink_to(folder.parent / "elsewhere")


def another_machine(folder: Path) -> None:
    edited(folder / "record.json", lambda tree: tree["unit"]["machine"].update(cpus=1))


def seed_twice(folder: Path) -> None:
    shutil.rmtree(folder / "seed2")
    shutil.copytree(folder / "seed1", folder / "seed2")


def other_words(name: str):
    return lambda folder: edited(
        folder / "seed1/run.json", lambda tree: tree["corpus"].update({name: "0" * 64})
    )


def edited_log(folder: Path) -> None:
    path = folder / "seed1/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0].replace('"cost":', '"cost":1'), *lines[1:]]))


def skipped_window(folder: Path) -> None:
    path = folder / "seed1/metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def given_parameters(folder: Path) -> None:
    edited(folder / "seed1/run.json", lambda tree: tree.update(params="given"))


def timed(change):
    """Changes the first line of seed 1's times."""

    def cheat(folder: Path) -> None:
        path = folder / "seed1/timing.jsonl"
        first, *lines = path.read_text().splitlines()
        row = json.loads(first)
        change(row)
        path.write_text("\n".join([json.dumps(row), *lines]) + "\n")

    return cheat


def repeated_time(folder: Path) -> None:
    path = folder / "seed1/timing.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))


def copied_time(folder: Path) -> None:
    shutil.copy(folder / "seed0/timing.jsonl", folder / "seed1/timing.jsonl")


def no_time(folder: Path) -> None:
    (folder / "seed1/timing.jsonl").unlink()


def other_version(folder: Path) -> None:
    edited(
        folder / "seed1/run.json",
        lambda tree: tree["sessions"][0]["versions"].update(jax="0.1"),
    )


def retrained(**changes):
    """Another run in the place of seed 1's, with a record of its own results."""

    def cheat(folder: Path) -> None:
        shutil.rmtree(folder / "seed1")
        options = {"steps": changes.pop("steps")} if "steps" in changes else {}
        config = CONFIG.replace(seed=1, **changes)
        jaxlm.train(config, run_dir=folder / "seed1", quiet=True, **options)

    return cheat


def warm_start(folder: Path) -> None:
    """Parameters of a run before, and a run.json that denies it."""
    params = jaxlm.load(folder / "seed0").params
    shutil.rmtree(folder / "seed1")
    jaxlm.train(CONFIG.replace(seed=1), run_dir=folder / "seed1", params=params, quiet=True)
    drawn = json.loads((folder / "seed0/run.json").read_text())["params"]
    edited(folder / "seed1/run.json", lambda tree: tree.update(params=drawn))


def peeked(folder: Path) -> None:
    """Test was read after the first epoch, and the run went on."""
    shutil.rmtree(folder / "seed1")
    config = CONFIG.replace(seed=1)
    jaxlm.train(config, run_dir=folder / "seed1", steps=4, quiet=True)
    jaxlm.train(config, run_dir=folder / "seed1", resume=True, quiet=True)


def reclaimed(folder: Path) -> None:
    """Claims what the runs' directories now hold."""
    import records  # pyright: ignore[reportMissingImports]

    (folder / "record.json").write_text(json.dumps(claimed(records, folder)))


def other_text(folder: Path) -> None:
    """A text with the test split in it, and a run of the claimed text's hash."""
    corpus = jaxlm.load_corpus("embedded-tiny")
    train = np.array(corpus.train)
    train[-len(corpus.test) :] = corpus.test
    shutil.rmtree(folder / "seed1")
    run = folder / "seed1"
    jaxlm.train(CONFIG.replace(seed=1), replace(corpus, train=train), run, quiet=True)
    edited(run / "run.json", lambda tree: tree["corpus"].update(corpus.identity))
    for path in (run / "checkpoints").glob("*/manifest.json"):
        edited(path, lambda tree: tree["corpus"].update(corpus.identity))
    reclaimed(folder)


def forged_parameters(folder: Path) -> None:
    """Other parameters at the end, with metrics and hashes that fit them."""
    run = folder / "seed1"
    place = max((run / "checkpoints").iterdir())
    arrays = load_file(place / "state.safetensors")
    with safe_open(place / "state.safetensors", "np") as file:
        metadata = file.metadata()
    for name, array in arrays.items():
        if array.dtype == np.float32:
            arrays[name] = array * np.float32(0.9)
    save_file(arrays, place / "state.safetensors", metadata)
    sealed(run)
    lm = jaxlm.load(run)
    results = {split: lm.evaluate(split).perplexity for split in ("valid", "test")}
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-2]["valid_perplexity"] = results["valid"]
    rows[-1]["test_perplexity"] = results["test"]
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    sealed(run)
    reclaimed(folder)


def sealed(run: Path) -> None:
    """Gives the last checkpoint the hashes of its state and of its metrics."""
    place = max((run / "checkpoints").iterdir())
    state = hashlib.sha256((place / "state.safetensors").read_bytes()).hexdigest()
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    metrics = b"".join(lines[:-1])  # but the test
    valid = json.loads(lines[-2])["valid_perplexity"]

    def seal(tree) -> None:
        tree["files"]["state.safetensors"] = state
        tree.update(metrics_bytes=len(metrics), valid_perplexity=valid)
        tree["metrics_sha256"] = hashlib.sha256(metrics).hexdigest()

    edited(place / "manifest.json", seal)


def swapped_parameters(folder: Path) -> None:
    for path in (folder / "seed1/checkpoints").iterdir():
        shutil.rmtree(path)
    for path in (folder / "seed0/checkpoints").iterdir():
        shutil.copytree(path, folder / "seed1/checkpoints" / path.name)


CHEATS = {
    "another preset": ("another preset", claims(preset="small")),
    "an easier target": ("another target", claims(target=2e9)),
    "an easier text": ("another text", claims(corpus="embedded")),
    "another measure": ("another measure", claims(measure="bits_per_character")),
    "a lucky seed of five": ("selected seeds", lucky_seed),
    "seeds of one's choice": ("selected seeds", claims(seeds=[0, 1, 4])),
    "a seed twice": ("seed 2: another config: train.seed", seed_twice),
    "another unit": ("another unit", another_unit),
    "a linked seed": ("another directory: seed2 is a link", linked_seed),
    "another machine's unit": ("another unit: it was measured", another_machine),
    "a repeated time": ("seed 1: an edited time: its log", repeated_time),
    "a negative time": (
        "seed 1: an edited time: an epoch",
        timed(lambda row: row.update(seconds=-1)),
    ),
    "a copied time": ("an edited time: two epochs", copied_time),
    "a longer interval": ("unreadable", claims(interval=[1.0, 1.0, 1.0])),
    "a number too large": ("unreadable: record.json has 1000", claims(mean=10**400)),
    "another text, denied": ("seed 1: another training: cost", other_text),
    "forged parameters": ("seed 1: another training: valid", forged_parameters),
    "a unit of one step": ("another unit", few_steps),
    "a better mean": ("another mean", claims(mean=1.0)),
    "a narrower interval": ("another interval", claims(interval=[1.0, 1.0])),
    "another text's hash": ("seed 1: another text", other_words("sha256")),
    "a smaller vocabulary": ("seed 1: another vocabulary", other_words("vocab_sha256")),
    "an edited log": ("seed 1: an edited log", edited_log),
    "skipped windows": ("seed 1: an edited log", skipped_window),
    "a shorter run": ("seed 1: skipped windows", retrained(steps=5)),
    "another config": ("seed 1: another config", retrained(learning_rate=0.3)),
    "given parameters": ("seed 1: a warm start", given_parameters),
    "a warm start denied": ("seed 1: a warm start", warm_start),
    "a test peeked at": ("seed 1: a test peeked at", peeked),
    "an edited time": (
        "seed 1: an edited time",
        timed(lambda row: row.update(seconds=row["seconds"] / 2)),
    ),
    "no time": ("seed 1: an edited time", no_time),
    "a better time": ("seed 1: another time", claims_of_seed_1(seconds=1e-9)),
    "an earlier epoch": ("seed 1: another epoch", claims_of_seed_1(epoch=2)),
    "a better validation": ("seed 1: another result", claims_of_seed_1(valid=1.0)),
    "other parameters": ("seed 1: ", swapped_parameters),
    "another version": ("other machines or versions", other_version),
}


AGAIN = (  # refused by the name of a cheat before them
    "seeds of one's choice",
    "a unit of one step",
    "skipped windows",
    "a repeated time",
    "a longer interval",
    "forged parameters",
    "given parameters",
    "no time",
)


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "[1]", '{"mean": NaN}', "\x80"])
def test_a_hostile_record_is_refused_in_a_sentence(records, tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    (sentence,) = records.verify(tmp_path, {})
    assert sentence.startswith(("unreadable", "incomplete"))


@pytest.mark.parametrize("kind", ["records", "mixtures"])
def test_a_folder_without_its_claims_is_incomplete(records, kind, tmp_path):
    missing = [f"incomplete: there is no {tmp_path / 'record.json'}"]
    assert import_module(kind).verify(tmp_path, {}) == missing


@pytest.mark.parametrize(
    ("named", "cheat"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] if name in AGAIN else [])
        for name, case in CHEATS.items()
    ],
)
def test_a_cheat_is_refused_by_its_name(records, record, tmp_path, named, cheat):
    folder = Path(shutil.copytree(record.folder, tmp_path / "tiny"))
    cheat(folder)
    wrong = records.verify(folder, record.rungs)
    assert any(line.startswith(named) for line in wrong), wrong


def test_a_result_of_the_best_parameters_by_test_is_refused(records, record, tmp_path):
    folder = Path(shutil.copytree(record.folder, tmp_path / "tiny"))
    edited(folder / "record.json", lambda tree: tree["runs"][1].update(test=1.0))
    tree = json.loads((folder / "record.json").read_text())
    mean, interval = records.summary([run["test"] for run in tree["runs"]])
    claims(mean=mean, interval=interval)(folder)
    wrong = records.verify(folder, record.rungs)
    assert wrong[0].startswith("seed 1: chosen by test") and "other parameters" in wrong[1]


@pytest.fixture(scope="module")
def mixtures(records):
    import mixtures  # pyright: ignore[reportMissingImports]

    def verified(folder: Path, _: Any) -> list[str]:
        """Stands for the check of a member, which has its tests above."""
        return ["a lucky seed"] if (folder / "seed3").exists() else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mixtures.MIXTURES, "tiny-mix", ("tiny-rung",))
        patch.setattr(mixtures, "ORDER", 1)  # so that the network counts
        patch.setattr(records, "verify", verified)
        yield mixtures


@pytest.fixture(scope="module")
def mixed(mixtures, record, tmp_path_factory) -> SimpleNamespace:
    """A record of a mixture that holds: three seeds of a tiny rung, and how often words stand."""
    place = tmp_path_factory.mktemp("mixture")
    folder = place / "tiny-mix"
    shutil.copytree(record.folder, folder / "tiny-rung")
    corpus = jaxlm.load_corpus("embedded-tiny")
    jaxlm.ngram(corpus, mixtures.ORDER, place / "words")
    results = []
    for seed in mixtures.records.SEEDS:
        run = folder / f"tiny-rung/seed{seed}"
        tuned = jaxlm.load(run).tune(Interpolation(with_=str(place / "words")), corpus=corpus)
        seconds = sum(epoch["seconds"] for epoch in read_timing(run).values())
        result = {"valid": tuned.valid, "test": tuned.test.perplexity}
        results.append(SimpleNamespace(seed=seed, seconds=seconds + 1, **result))
    claimed = mixtures.claims("tiny-mix", results, [0.1] * 12)
    (folder / "record.json").write_text(json.dumps(claimed))
    assert mixtures.verify(folder, record.rungs) == []
    return SimpleNamespace(folder=folder, rungs=record.rungs)


def other_results(tree: dict[str, Any]) -> None:
    """Results of seed 0 that were never measured, and the mean and interval that follow."""
    tree["runs"][0].update(seconds=1e-3, valid=1.0, test=1.0)
    import records  # pyright: ignore[reportMissingImports]

    mean, interval = records.summary([run["test"] for run in tree["runs"]])
    tree.update(mean=mean, interval=interval)


CHEATS_OF_MIXTURES = {
    "another mixture": (["another mixture"], lambda tree: tree.update(mixture="mix-71")),
    "other members": (["another mixture"], lambda tree: tree.update(members=["fast-84"])),
    "another order": (["another mixture"], lambda tree: tree.update(order=9)),
    "chosen seeds": (["selected seeds"], lambda tree: tree["runs"][1].update(seed=4)),
    "a better mean": (["another mean"], lambda tree: tree.update(mean=1.0)),
    "another unit": (["another unit"], lambda tree: tree.update(step_seconds=[9.0] * 12)),
    "a list": (["unreadable"], lambda tree: tree.update(mixture=[])),
    "other results": (
        [
            "seed 0: another result: valid",
            "seed 0: another result: test",
            "seed 0: another time",
        ],
        other_results,
    ),
}


@pytest.mark.parametrize(
    ("named", "cheat"), CHEATS_OF_MIXTURES.values(), ids=list(CHEATS_OF_MIXTURES)
)
def test_a_cheat_of_a_mixture_is_refused_by_its_name(mixtures, mixed, named, cheat):
    path = mixed.folder / "record.json"
    honest = path.read_text()
    try:
        edited(path, cheat)
        wrong = mixtures.verify(mixed.folder, mixed.rungs)
    finally:
        path.write_text(honest)
    assert len(wrong) == len(named) and all(map(str.startswith, wrong, named)), wrong


def test_a_mixture_of_other_members_is_refused(mixtures, mixed, tmp_path):
    folder = Path(shutil.copytree(mixed.folder, tmp_path / "mix"))
    (folder / "tiny-rung/seed3").mkdir()
    assert mixtures.verify(folder, mixed.rungs) == ["tiny-rung: a lucky seed"]
    (folder / "third").mkdir()
    assert mixtures.verify(folder, mixed.rungs)[0].startswith("another mixture: the folders")


@pytest.mark.slow
def test_the_commands_mix_runs_by_the_weights_that_they_tell(mixtures, mixed):
    claim = json.loads((mixed.folder / "record.json").read_text())["runs"][0]
    run = mixed.folder / "tiny-rung/seed0"
    weights, valid, test, seconds = mixtures.mixed([run], "embedded-tiny")
    assert len(weights) == 2 and sum(weights) == pytest.approx(1) and seconds > 0
    assert min(weights) > 0 and (valid, test) == (claim["valid"], claim["test"])
