"""Mutated files, thousands of them: one sentence or a right answer;
no traceback, no hang, no memory blow-up.
"""

import contextlib
import hashlib
import io
import json
import re
import resource
import shutil
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import CONFIG, ROOT

from jaxlm.base.errors import JaxlmError
from jaxlm.base.files import Folder
from jaxlm.base.hashed_json import from_hashed_json, to_hashed_json
from jaxlm.cli import main
from jaxlm.config.config import Config
from jaxlm.data.corpora import load_corpus
from jaxlm.data.text import read_string
from jaxlm.data.vocab import Vocab
from jaxlm.runs import checkpoint
from jaxlm.runs import directory as rundir
from jaxlm.runs.checkpoint import Manifest
from jaxlm.runs.metrics import read_metrics
from jaxlm.runs.trainer import new_state

SECONDS = 20
BYTES = 1 << 30  # more than that for one input, or for all, is a hang or a blow-up
NASTY = [
    b"",
    b"\0",
    b"-",
    b"1e999",
    b"-1",
    b"9" * 5000,
    b"NaN",
    b"null",
    b"true",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b"\\ud800",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"[" * 3000,
    b"..",
    b"../../x",
    b"/etc/passwd",
    b"\n",
    b"\r\n",
    b"1099511627776",
    b"0.1",
    b"{}",
    b"[]",
    b'""',
    b"\xe2\x80\xa8",
    b"<unk>",
    b"<eos>",
]
PIECES = st.one_of(st.sampled_from(NASTY), st.binary(max_size=4))
MUTATIONS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), PIECES), min_size=1, max_size=4)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from([2**31, 2**63, 10**300, -1, 0, "../x", "[]", "np.ndarray", "nan", "inf"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


@st.composite
def mutated(draw, original: bytes) -> bytes:
    """A file of which some bytes are cut out, and others put in."""
    data = original
    for place, cut, put in draw(MUTATIONS):
        at = int(place * len(data))
        data = data[:at] + put + data[at + cut :]
    return data


@st.composite
def json_mutated(draw, original: bytes) -> bytes:
    """JSON of which a value, somewhere, is another, gone, or has company."""
    if draw(st.booleans()):
        return draw(mutated(original))
    tree = json.loads(original)
    for _ in range(draw(st.integers(1, 3))):
        at = tree
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and draw(st.integers(0, 3)):
                at = at[key]
                continue
            if draw(st.integers(0, 4)):
                at[key] = draw(VALUES)
            elif isinstance(at, dict):
                del at[key]
                at[draw(st.text(max_size=5))] = draw(VALUES)
            else:
                at.insert(key, draw(VALUES))
            break
    return json.dumps(tree).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run directory with one checkpoint."""
    run_dir = tmp_path_factory.mktemp("fuzz") / "run"
    run_dir.mkdir()
    config = CONFIG.replace(vocab_size=5)
    corpus = load_corpus("embedded-tiny")
    with Folder.open(run_dir) as run:
        rundir.begin(run, config, corpus)
    rows = [
        {
            "kind": "window",
            "step": k,
            "epoch": 1,
            "cost": 3.5,
            "grad_norm": "nan",
            "learning_rate": 1.0,
        }
        for k in (1, 2)
    ]
    rows.append({"kind": "epoch", "corpus": "x", "epoch": 1, "train_perplexity": 9.5})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Folder.open(run_dir) as run:
        checkpoint.save(
            run,
            new_state(config),
            config,
            Vocab(("<unk>", "<eos>", "a", "b", "c")),
            Manifest(0, 0, 9.5, {"name": "x", "sha256": "0"}),
        )
    return run_dir


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def in_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def resealed(run_dir: Path, name: str, data: bytes) -> None:
    """Reads a checkpoint of which a stranger has changed one file, and sealed it anew."""
    path = run_dir / "checkpoints/00000000"
    aside = run_dir / "aside"
    original = (path / name).read_bytes()
    shutil.copy(path / "manifest.json", aside)
    try:
        (path / name).write_bytes(data)
        tree = from_hashed_json((path / "manifest.json").read_bytes())
        tree["files"][name] = hashlib.sha256(data).hexdigest()
        (path / "manifest.json").write_text(to_hashed_json(tree))
        state = checkpoint.read(path).state
        assert state.params["embedding"].shape == (5, 4)
    finally:
        (path / name).write_bytes(original)
        shutil.copy(aside, path / "manifest.json")


def unsealed(run_dir: Path, data: bytes) -> None:
    """Reads a checkpoint with another manifest."""
    path = run_dir / "checkpoints/00000000/manifest.json"
    original = path.read_bytes()
    try:
        path.write_bytes(data)
        checkpoint.read(path.parent)
        assert data == original
    finally:
        path.write_bytes(original)


def sealed_anew(run_dir: Path, data: bytes) -> None:
    """The same, where the seal is right."""
    try:
        tree = json.loads(data)
        del tree["sha256"]
        data = to_hashed_json(tree).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    with contextlib.suppress(AssertionError):  # what does not matter to the arrays may be another's
        unsealed(run_dir, data)


def header_of(path: Path) -> bytes:
    data = (path / "state.safetensors").read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def with_header(run_dir: Path, data: bytes) -> None:
    """Reads a checkpoint whose arrays are described otherwise, and sealed anew."""
    path = run_dir / CHECKPOINT
    arrays = (path / "state.safetensors").read_bytes()[8 + len(header_of(path)) :]
    resealed(run_dir, "state.safetensors", len(data).to_bytes(8, "little") + data + arrays)


CHECKPOINT = "checkpoints/00000000"
TARGETS = {
    "config": (lambda run, data: Config.from_json(text_of(data)), "config.json", json_mutated),
    "vocabulary": (
        lambda run, data: Vocab.from_json(text_of(data)),
        f"{CHECKPOINT}/vocab.json",
        json_mutated,
    ),
    "manifest": (unsealed, f"{CHECKPOINT}/manifest.json", json_mutated),
    "sealed manifest": (sealed_anew, f"{CHECKPOINT}/manifest.json", json_mutated),
    "checkpoint's config": (
        lambda run, data: resealed(run, "config.json", data),
        f"{CHECKPOINT}/config.json",
        json_mutated,
    ),
    "checkpoint's arrays": (
        lambda run, data: resealed(run, "state.safetensors", data),
        f"{CHECKPOINT}/state.safetensors",
        mutated,
    ),
    "checkpoint's header": (with_header, lambda run: header_of(run / CHECKPOINT), json_mutated),
    "run record": (
        lambda run, data: rundir.saved_record(in_file(run / "other/run.json", data).parent),
        "run.json",
        json_mutated,
    ),
    "run config": (
        lambda run, data: rundir.saved_config(in_file(run / "other/config.json", data).parent),
        "config.json",
        json_mutated,
    ),
    "text": (
        lambda run, data: read_string(in_file(run / "text.txt", data)),
        lambda _: "a b <unk> c\nd é\n" * 5,
        mutated,
    ),
    "corpus": (
        lambda run, data: load_corpus(in_file(run / "text.txt", data), max_vocab=6),
        lambda _: "a b <unk> c\nd é\n" * 5,
        mutated,
    ),
    "metrics": (
        lambda run, data: read_metrics(in_file(run / "other/metrics.jsonl", data).parent),
        "metrics.jsonl",
        mutated,
    ),
}


def feed(target: str, run_dir: Path, inputs: int) -> None:
    read, source, mutation = TARGETS[target]
    original = (run_dir / source).read_bytes() if isinstance(source, str) else source(run_dir)
    (run_dir / "other").mkdir(exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    fed = 0

    @settings(
        max_examples=inputs,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),  # pyright: ignore
    )
    @given(mutation(original if isinstance(original, bytes) else original.encode()))
    def one(data: bytes) -> None:
        nonlocal fed
        fed += 1
        start = time.monotonic()
        try:
            read(run_dir, data)
        except JaxlmError as error:
            assert "Traceback" not in str(error)
        assert time.monotonic() - start < SECONDS

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one()
    assert fed >= inputs
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


@pytest.mark.parametrize("target", TARGETS)
def test_a_hundred_mutated_files(place, target):
    feed(target, place, inputs=100)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_thousands_of_mutated_files(place, target):
    feed(target, place, inputs=1500)


FILES = {  # of a finished run, sweep and prepared corpus -> the verbs that read it
    "run/config.json": ("info", "json", "evaluate", "train", "reproduce"),
    "run/run.json": ("info", "json", "train", "reproduce"),
    "run/metrics.jsonl": ("info", "json", "plot", "train", "reproduce"),
    **{
        f"run/checkpoints/00000027/{name}": (
            "info",
            "json",
            "evaluate",
            "perplexity",
            "predict",
            "neighbors",
            "plot",
            "train",
        )
        for name in ("manifest.json", "config.json", "vocab.json", "state.safetensors")
    },
    "sweep/study.journal": ("sweep",),
    **{
        f"corpus/{name}": ("evaluate", "prepare")
        for name in ("prepared.json", "vocab.json", "train.ids", "valid.ids", "test.ids")
    },
}
VERBS = {
    "info": ("info", "run"),
    "json": ("info", "run", "--json"),
    "evaluate": ("evaluate", "run", "--corpus", "corpus"),
    "perplexity": ("perplexity", "run", "w1 w2"),
    "predict": ("predict", "run", "w1"),
    "neighbors": ("neighbors", "run", "w1"),
    "plot": ("plot", "run", "--method", "pca", "--words", "8"),
    "train": ("train", "--run-dir", "run", "--resume"),
    "reproduce": ("reproduce", "run"),
    "sweep": ("sweep", "--run-dir", "sweep", "--resume"),
    "prepare": ("prepare", "text", "corpus"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a text, its prepared corpus, and a run and a sweep of it that have ended."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text").write_text("w1 w2 w3 w4 \x1b]0;w5\x07 w6 w7 w8 w9\n" * 150)
    size = [
        "--corpus",
        "corpus",
        "--hidden-sizes",
        "4",
        "--embedding-size",
        "4",
        "--batch-size",
        "5",
        "--bptt-length",
        "10",
        "--epochs",
        "1",
    ]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        for command in (
            ["prepare", "text", "corpus"],
            ["train", *size, "--run-dir", "run"],
            ["sweep", *size, "--set", "learning_rate=1,2", "--run-dir", "sweep"],
        ):
            assert main(command) == 0
    assert (folder / "run/checkpoints/00000027").is_dir()
    return folder


def spoken(arguments: tuple[str, ...]) -> str | None:
    """Runs a command, and holds what it says and how it ends to what is
    promised of every command; what it answered.
    """
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    said = out.getvalue()
    wrong = err.getvalue()
    assert code in (0, 1, 2, 3), code
    assert "Traceback" not in said + wrong and wrong.count("\n") <= 1, wrong
    assert (
        wrong or code != 1 or "problems" in said or "differs" in said or arguments[0] == "sweep"
    ), said
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", said + wrong), (
        said + wrong
    )
    if code == 0:
        return said
    return None


def test_the_page_counts_what_is_mutated():
    page = (ROOT / "docs/guarantees.md").read_text()
    assert f"{len(FILES)} files, {60 * len(FILES)} mutated inputs" in page
    assert (
        f"{1500 * len(TARGETS) + 4 * 3000:,} mutated files" in page
    )  # (3,000 of each layout of a pickle)


def through_every_verb(finished: Path, tmp_path: Path, name: str, inputs: int) -> None:
    original = (finished / name).read_bytes()
    change = json_mutated if name.endswith(".json") else mutated
    with contextlib.chdir(finished):
        answers = [
            verb
            for verb in FILES[name]
            if verb in ("evaluate", "perplexity", "predict", "neighbors")
        ]
        right = {verb: spoken(VERBS[verb]) for verb in answers}

    @settings(
        max_examples=inputs,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),  # pyright: ignore
    )
    @given(change(original), st.booleans(), st.data())
    def one(data: bytes, seal_again: bool, drawn: st.DataObject) -> None:
        if seal_again:
            with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
                tree = json.loads(data)
                tree.pop("sha256", None)
                data = to_hashed_json(tree).encode()
        shutil.rmtree(tmp_path / "at", ignore_errors=True)
        shutil.copytree(finished, tmp_path / "at")
        (tmp_path / "at" / name).write_bytes(data)
        with contextlib.chdir(tmp_path / "at"):
            start = time.monotonic()
            said = spoken(VERBS[verb := drawn.draw(st.sampled_from(FILES[name]))])
            assert seal_again or said is None or said == right.get(verb, said)
            assert time.monotonic() - start < SECONDS

    one()


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_mutated_file_is_one_sentence_through_every_verb(finished, tmp_path, name):
    through_every_verb(finished, tmp_path, name, inputs=60)
