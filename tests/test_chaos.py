"""Everything that can happen to a run, a sweep or a preparation, mixed at random:
nothing is lost in silence.

A life begins in an empty directory and is disturbed until it ends. A case is one disturbance and
the command that meets it. After each, what was planted is taken away and what was damaged is put
back, and the same command is given again. At the end every byte that is promised must be that of a
life that nobody disturbed.

Then Ctrl-C comes at any moment of any verb, output goes to paths of every kind, and texts are long
and regular.

JAXLM_CHAOS is the number of cases (200): half are disturbances, a quarter are Ctrl-C, the rest are
outputs and texts. JAXLM_CHAOS_SEED is the seed, which is printed:

    JAXLM_CHAOS=3000 JAXLM_CHAOS_SEED=1 pytest -m slow -n 0 tests/test_chaos.py
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from forked import Command, Server
from processes import FIELDS, flags, kept, start

from jaxlm import cli
from jaxlm.runs import checkpoint

CASES = int(os.environ.get("JAXLM_CHAOS", "200"))
SEED = int(os.environ.get("JAXLM_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
CODES = {
    0,
    1,
    -9,
}  # (2: arguments that do not parse; 3: diverged; 128 + N: no signal is sent but SIGKILL)
MOST_CASES_OF_A_LIFE = 12
DISK = 8 << 20  # bytes

FLAGS = flags(**FIELDS | dict(hidden_sizes=8, batch_size=100, windows_per_call=2))
RATE = ("--learning-rate", "4")  # its best epoch is not its last one


class Subject:
    """What is begun, resumed and compared."""

    name: str

    def commands(self, at: Path) -> Iterator[tuple[str | Path, ...]]:
        """The commands that begin or resume it; a second one is a second writer."""
        raise NotImplementedError

    def questions(self, at: Path) -> list[tuple[str | Path, ...]]:
        """Commands that only read it."""
        return []

    def result(self, at: Path) -> dict[str, bytes]:
        """Every byte that is promised of it, once it has ended."""
        raise NotImplementedError


class SingleRun(Subject):
    name = "run"

    def commands(self, at):
        while True:
            how = ("--resume",) if (at / "config.json").exists() else ()
            yield ("train", "--run-dir", at, *FLAGS, *RATE, *how)

    def questions(self, at):
        return [
            ("info", at),
            ("evaluate", at),
            ("evaluate", at, "--checkpoint", "best"),
            ("plot", at, "--method=pca"),
        ]

    def result(self, at):
        return kept(at)


class SweepOfTwo(Subject):
    """A sweep on which two processes work."""

    name = "sweep"

    def commands(self, at):
        while True:
            how = ("--resume",) if (at / "trials").exists() else ("--set", "learning_rate=0.5,1,4")
            yield ("sweep", "--run-dir", at, *FLAGS, *how)

    def questions(self, at):
        return [("info", at / "trials/0000"), ("evaluate", at / "trials/0001")]

    def result(self, at):
        return {
            f"{trial.name}/{name}": data
            for trial in sorted((at / "trials").iterdir())
            for name, data in kept(trial).items()
        }


class Preparation(Subject):
    name = "prepare"

    def __init__(self, text: Path):
        self._text = text

    def commands(self, at):
        while True:
            yield ("prepare", self._text, at, "--min-count", "2")

    def questions(self, at):
        asked = at.with_name("asked")
        shutil.rmtree(asked, ignore_errors=True)
        return [
            (
                "train",
                *FLAGS,
                "--corpus",
                at,
                "--min-count",
                "2",
                "--batch-size",
                "5",
                "--steps",
                "1",
                "--run-dir",
                asked,
            )
        ]

    def result(self, at):
        return {path.name: path.read_bytes() for path in sorted(at.iterdir())}


@dataclass
class Place:
    """Where lives are lived: a small disk, beside a tree of somebody's that nothing may touch."""

    disk: Path
    canary: Path
    mounted: bool
    server: Server
    references: dict[str, dict[str, bytes]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def canary_state(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(self.canary.rglob("*")):
            status = path.lstat()
            digest.update(f"{path} {status.st_mode} {status.st_size} {status.st_mtime_ns}".encode())
            if path.is_file():
                digest.update(path.read_bytes())
        return digest.hexdigest()


@pytest.fixture(scope="module")
def place(server, tmp_path_factory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("chaos")
    disk = folder / "disk"
    canary = folder / "canary"
    disk.mkdir()
    for name in (
        "00000007/notes",
        ".00000007.partial/notes",
        "checkpoints/00000007/manifest.json",
        "rc",
        "d/x",
    ):
        (canary / name).parent.mkdir(parents=True, exist_ok=True)
        (canary / name).write_text("mine\n")
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", disk], capture_output=True
    ).returncode
    try:
        yield Place(disk, canary, mounted, server)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text"
    words = [f"w{rng.randrange(1, 30) ** 2}" for _ in range(6_000)]
    path.write_text("".join(word + ("\n" if rng.random() < 0.1 else " ") for word in words))
    return path


@pytest.fixture
def counts(request, capsys) -> Iterator[Counter]:
    """Counts of a test's cases, which are printed however it ends."""
    counts = Counter()
    yield counts
    with capsys.disabled():
        cases = f"{counts.total()}: {dict(sorted(counts.items()))}"
        print(f"\nJAXLM_CHAOS_SEED={SEED} {request.function.__name__}: {cases}", flush=True)


def test_a_disturbed_life_ends_as_an_undisturbed_one(place, text, counts):
    subjects = [SingleRun(), SweepOfTwo(), Preparation(text)]
    for subject in subjects:
        at = place.disk / "reference"
        for again in (False, True):  # the first one compiles
            started = time.monotonic()
            code, out, err = place.server.start(*next(subject.commands(at))).end()
            assert (code, err) == (0, ""), out + err
            place.seconds[subject.name] = time.monotonic() - started
            if not again:
                place.references[subject.name] = subject.result(at)
            else:
                assert not different(subject.result(at), place.references[subject.name])
            shutil.rmtree(at)
    life = 0
    while counts.total() < CASES // 2:
        life += 1
        rng = random.Random(SEED * 1_000_003 + life)
        subject = rng.choices(subjects, (5, 3, 2))[0]
        told: list[str] = []
        try:
            for what in live(subject, place, rng, told):
                counts[f"{subject.name}: {what}"] += 1
        except BaseException:
            copy = Path(tempfile.mkdtemp(prefix="jaxlm-chaos-"))
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(
                    place.disk,
                    copy / "disk",
                    symlinks=True,
                    ignore=lambda at, names: [name for name in names if Path(at, name).is_fifo()],
                )
            (copy / "told").write_text("\n".join(told))
            print(
                f"seed {SEED}, life {life}, {counts.total()} cases: kept in {copy}",
                *told[-12:],
                sep="\n",
            )
            raise


def live(subject: Subject, place: Place, rng: random.Random, told: list[str]) -> Iterator[str]:
    """One life: yields what each of its cases was."""
    at = place.disk / "life"
    before = place.canary_state()
    commands = subject.commands(at)
    try:
        for _ in range(rng.randrange(2, MOST_CASES_OF_A_LIFE)):
            kind, disturb = rng.choice(
                [item for item in DISTURBANCES.items() if place.mounted or item[0] != "full"]
            )
            told.append(f"{kind}:")
            yield f"{kind} ({disturb(subject, at, place, rng, told)})"
            assert place.canary_state() == before, "somebody's files were touched"
        command = next(commands)
        code, out, err = place.server.start(*command).end()
        told.append(f"at last {command} -> {code}\n{err}")
        assert (code, err) == (0, ""), out[-2000:] + err
        assert not different(subject.result(at), place.references[subject.name])
        leftovers = [
            str(path) for path in at.rglob("*") if path.name.startswith((".partial", ".0"))
        ]
        assert not leftovers
    finally:
        for left in (at, at.with_name("asked")):
            shutil.rmtree(left, ignore_errors=True)
    assert place.canary_state() == before, "somebody's files were touched"


def different(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]


def finished(
    subject: Subject, place: Place, command: Command, told: list[str], asked: object = ""
) -> tuple[int, str]:
    """Waits for a command and holds it to what is promised of every command:
    (exit code, what it complains of).
    """
    code, out, err = command.end()
    told.append(f"  {asked} -> {code} {err}")
    assert code in CODES, f"exit code {code}: {err}"
    assert "Traceback" not in out + err and "\x1b" not in out + err, out + err
    # (That it waits for another process, or that a log of TensorBoard ends, is no error.)
    said = [
        line
        for line in err.splitlines()
        if not line.startswith(("another process is preparing", "waiting for", "warning: "))
    ]
    assert len(said) <= 1, err
    if code == 1 and not said:  # in the table of `info`, or among a sweep's members
        assert re.search("^problems$| damaged", out, re.MULTILINE), out
        return code, out
    return code, err


def killed(subject: Subject, at: Path, place: Place, rng: random.Random, told: list[str]) -> str:
    """SIGKILL at any moment, of one or of two who work on it."""
    both = [place.server.start(*next(subject.commands(at)))]
    if subject.name != "run" and rng.random() < 0.5:
        time.sleep(rng.uniform(0, place.seconds[subject.name] / 2))
        both.append(place.server.start(*next(subject.commands(at))))
    time.sleep(rng.uniform(0, 1.3 * place.seconds[subject.name]))
    caught = 0
    for command in both:
        command.kill()
        code, err = finished(subject, place, command, told, "killed")
        caught += code == -9
        # A second one may come before there is a run to resume, or find one that it would have
        # begun.
        assert code != 1 or len(both) > 1, err
    return f"{caught} of {len(both)}"


def second_writer(
    subject: Subject, at: Path, place: Place, rng: random.Random, told: list[str]
) -> str:
    """Another process comes while one works:
    a run is refused, a sweep is helped, a preparation waits.
    """
    first = place.server.start(*next(subject.commands(at)))
    time.sleep(rng.uniform(0, 0.6 * place.seconds[subject.name]))
    second = place.server.start(*next(subject.commands(at)))
    code, err = finished(subject, place, second, told, "second")
    if rng.random() < 0.5:
        first.kill()
    other, said = finished(subject, place, first, told, "first")
    for refused, why in ((code, err), (other, said)):
        assert refused != 1 or re.search("in use|is not empty|holds no|no such file|exists", why), (
            why
        )
    assert not code == other == 1
    if code:
        return "refused"
    return "in time"


def answered(
    subject: Subject, at: Path, place: Place, rng: random.Random, told: list[str], names: list[str]
) -> str:
    """Asks or resumes a disturbed life: it is done, or refused with the name of what is wrong."""
    questions = subject.questions(at)
    resumes = not questions or rng.random() < 0.7
    asked = next(subject.commands(at)) if resumes else rng.choice(questions)
    command = place.server.start(*asked)
    if resumes and rng.random() < 0.3:
        time.sleep(rng.uniform(0, place.seconds[subject.name]))
        command.kill()
    code, err = finished(subject, place, command, told, asked)
    if code == 1:
        there = re.search("|".join(map(re.escape, names)), err)
        begun = re.search(
            "problems|holds no (run|checkpoints|sweep)|there is no (directory|corpus)|"
            "finished epoch|"
            "is not a finished corpus|is not empty|has no checkpoint|in use|cannot be found|"
            "does not exist|is damaged|not intact|is intact",
            err,
        )
        assert there or begun, f"{names} is not named: {err}"
    if code == 1:
        return "refused"
    if code == -9:
        return "killed"
    return "done"


def damaged(subject: Subject, at: Path, place: Place, rng: random.Random, told: list[str]) -> str:
    """A bit flips in a file, or it becomes shorter, or it vanishes."""
    how = rng.choice(("flip", "truncate", "remove"))
    files = [path for path in sorted(at.rglob("*")) if path.is_file() and path.stat().st_size]
    if not files:
        return "nothing yet"
    path = rng.choice(files)
    original = path.read_bytes()
    name = str(path.relative_to(at))
    told.append(f"  {how} {name}")
    if how == "remove":
        path.unlink()
    else:
        data = bytearray(original)
        if how == "flip":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
    wrong = None if how == "remove" else path.read_bytes()
    end = answered(subject, at, place, rng, told, [path.name, path.parent.name])
    now = path.read_bytes() if path.is_file() else None
    if now == wrong and path.parent.is_dir():
        path.write_bytes(original)
    return f"{how}, {end}"


def planted(subject: Subject, at: Path, place: Place, rng: random.Random, told: list[str]) -> str:
    """Somebody puts a link, a FIFO or something else in a file's or a folder's place."""
    how = rng.choice(("link", "hard link", "FIFO", "sparse", "folder"))
    some = [path for path in sorted(at.rglob("*")) if path.name not in (".partial",)]
    new = [
        at / name
        for name in (
            ".partial-metrics.jsonl",
            "curve.png",
            "checkpoints",
            ".lock",
            "metrics.jsonl",
            "study.journal",
            "trials",
            "prepared.json",
            "train.ids",
            "sweep.json",
        )
    ]
    path = rng.choice([*some, *(rng.choice(new) for _ in range(1 + len(some) // 4))])
    if not path.parent.is_dir():
        return "nothing yet"
    aside = Path(tempfile.mkdtemp(dir=at.parent)) / "aside"
    there = os.path.lexists(path)
    if there:
        os.rename(path, aside)
    if how == "link":
        path.symlink_to(
            rng.choice(
                [
                    place.canary / "rc",
                    place.canary,
                    place.canary / "checkpoints",
                    place.canary / "nothing",
                ]
            )
        )
    elif how == "hard link" and os.stat(place.canary).st_dev == os.stat(at).st_dev:
        path.hardlink_to(place.canary / "rc")
    elif how == "FIFO":
        os.mkfifo(path)
    elif how == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    else:
        path.mkdir()
    planted_as = path.lstat()
    told.append(f"  {how} at {path.relative_to(at)}")
    end = answered(subject, at, place, rng, told, [path.name, path.parent.name])
    same = os.path.lexists(path) and (path.lstat().st_ino, path.lstat().st_mode) == (
        planted_as.st_ino,
        planted_as.st_mode,
    )
    if (
        same and how == "sparse" and path.stat().st_size != 1 << 40
    ):  # it was taken for a file without lines, and used
        same = False
    if (
        same and path.is_dir() and not path.is_symlink() and any(path.iterdir())
    ):  # an empty one was used: it is kept
        same = False
    if same:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if there and same:
        os.rename(aside, path)
    shutil.rmtree(aside.parent)
    return f"{how}, {end}"


def full(subject: Subject, at: Path, place: Place, rng: random.Random, told: list[str]) -> str:
    """The disk has room for little more."""
    status = os.statvfs(place.disk)
    free = status.f_bavail * status.f_frsize
    left = rng.choice([0, 4096, rng.randrange(200_000)])
    filler = place.disk / "filler"
    try:
        with open(filler, "wb") as file:
            file.write(b"x" * max(0, free - left))
        told.append(f"  {left} bytes are free")
        return answered(subject, at, place, rng, told, ["No space left"])
    finally:
        filler.unlink()


def clock(subject: Subject, at: Path, place: Place, rng: random.Random, told: list[str]) -> str:
    """The clock was set back, or was ahead: files are from another time."""
    for path in [at, *at.rglob("*")] if at.exists() else ():
        if rng.random() < 0.7:
            when = rng.choice([0, 1, time.time() - 86_400, time.time() + 86_400 * 365])
            os.utime(path, (when, when))
    return answered(subject, at, place, rng, told, ["nothing can be refused"])


DISTURBANCES = {
    "killed": killed,
    "damaged": damaged,
    "planted": planted,
    "full": full,
    "second writer": second_writer,
    "clock": clock,
}


# `!`: Python has begun
MARKED = "import sys, jaxlm.__main__ as it; sys.stderr.write('!'); sys.stderr.flush(); it.main()"
SENTENCES = "the cat sat\nw1 w2 w3\n"
PAIR = '{"sentence_good": "the cat", "sentence_bad": "cat the", "UID": "order"}\n'
CONDITION = {"condition_name": "c", "regions": [{"region_number": 1, "content": "the cat"}]}
SUITE = {
    "meta": {"name": "suite", "metric": "sum"},
    "predictions": [{"type": "formula", "formula": "(1;%c%) = (*;%c%)"}],
    "region_meta": {"1": "all"},
    "items": [{"item_number": 1, "conditions": [CONDITION]}],
}
NBEST = "a-1 1 0 the cat\na-2 1.5 0 cat the\n"
# Twelve sentences of one reader, who needs longer for longer words.
TIMES = "item,position,word,time\n" + "".join(
    f"{item},{position},{word},{200 + 20 * len(word) + 7 * (item * position % 5)}\n"
    for item in range(1, 13)
    for position, word in enumerate(
        ("the", "of", "every", "healthily", "loan", "from", "curiously"), 1
    )
)
VERBS = {  # name -> what follows RUN; {out}: a new path
    "evaluate": ("evaluate", "{run}"),
    "evaluate a text": ("evaluate", "{run}", "--text", "{text}"),
    "tune": ("evaluate", "{run}", "--protocol", "cache", "--tune"),
    "dynamic": ("evaluate", "{run}", "--protocol", "dynamic"),
    "perplexity": ("perplexity", "{run}", "the cat"),
    "predict": ("predict", "{run}", "the"),
    "neighbors": ("neighbors", "{run}", "{word}"),
    "info": ("info", "{run}"),
    "plot": ("plot", "{run}", "--method=pca", "--words", "50"),
    "report": ("report", "{run}", "-o", "{out}"),
    "surprisal": ("surprisal", "{run}", "{text}", "--output", "{out}"),
    "states": ("states", "{run}", "{text}", "--output", "{out}"),
    "minimal-pairs": ("minimal-pairs", "{run}", "{pairs}", "--output", "{out}"),
    "syntaxgym": ("syntaxgym", "{run}", "{suite}", "--output", "{out}"),
    "babylm": ("babylm", "{run}", "{babylm}"),
    "compare": ("compare", "{run}", "{run}"),
    "humanlike": ("humanlike", "{run}", "--times", "{times}"),
    "rescore": ("rescore", "{run}", "{nbest}"),
    "generate": ("generate", "{run}"),
    "export": ("export", "{run}", "--to", "safetensors", "-o", "{out}"),
    "import": ("import", "{hub}", "{out}"),
    "ngram": ("ngram", "{novel}", "-o", "{out}"),
    "prepare": ("prepare", "{novel}", "{out}"),
    "reproduce": ("reproduce", "{run}", "--run-dir", "{out}"),
    "train": ("train", "--run-dir", "{out}", *FLAGS),
    "sweep": ("sweep", "--run-dir", "{out}", *FLAGS, "--epochs", "1", "--set", "learning_rate=1,4"),
}


@pytest.fixture(scope="module")
def trained(server, tmp_path_factory) -> dict[str, str]:
    """A finished run, texts for the verbs, and one of its words."""
    folder = tmp_path_factory.mktemp("trained")
    code, out, err = server.start("train", "--run-dir", folder / "run", *FLAGS).end()
    assert (code, err) == (0, ""), out + err
    (folder / "text").write_text(SENTENCES)
    (folder / "pairs.jsonl").write_text(PAIR)
    (folder / "novel").write_text(300 * SENTENCES)
    (folder / "suite.json").write_text(json.dumps(SUITE))
    (folder / "nbest").write_text(NBEST)
    (folder / "times.csv").write_text(TIMES)
    (folder / "babylm" / "blimp_fast").mkdir(parents=True)
    (folder / "babylm" / "blimp_fast" / "order.jsonl").write_text(PAIR)
    code, out, err = server.start(
        "export", folder / "run", "--to", "hub", "-o", folder / "hub"
    ).end()
    assert (code, err) == (0, ""), out + err
    words = json.loads((checkpoint.find(folder / "run") / "vocab.json").read_text())
    files = {"pairs": "pairs.jsonl", "suite": "suite.json", "times": "times.csv"}
    paths = files | {name: name for name in ("run", "text", "hub", "novel", "nbest", "babylm")}
    return {name: folder / file for name, file in paths.items()} | {"word": words[5]}


def command_of(verb: str, trained: dict[str, str], out: Path) -> list[str]:
    return [part.format(**trained, out=out) for part in VERBS[verb]]


def test_ctrl_c_at_any_moment_of_any_verb(server, trained, tmp_path, counts):
    """Exit code 130 without a traceback or an unfinished file; a run resumes to its usual end."""
    assert {arguments[0] for arguments in VERBS.values()} == {*cli.VERBS}
    rng = random.Random(SEED)
    seconds = dict[str, float]()
    before = kept(trained["run"])
    for case in range(CASES // 4):
        verb = rng.choice(sorted(VERBS))
        out = tmp_path / f"{case}"
        fresh = rng.random() < 0.15  # a process that imports everything while the signal comes
        begun = time.monotonic()
        command = command_of(verb, trained, out)
        delay = rng.uniform(0.01, seconds[verb] + 3 * fresh) if verb in seconds else None
        if fresh:
            alone = start(*command, code=MARKED, preexec_fn=default_interrupt)
            assert alone.stderr and alone.stderr.read(1) == "!"
            if delay:
                time.sleep(delay)
                alone.send_signal(signal.SIGINT)
            said, err = alone.communicate(timeout=300)
            code = alone.returncode
        else:
            process = server.start(*command)
            if delay:
                time.sleep(delay)
                process.send_signal(signal.SIGINT)
            code, said, err = process.end()
        where = (
            f"seed {SEED}, case {case}: {verb}{' (fresh)' * fresh} -> {code}: {said[-500:]} {err}"
        )
        assert "Traceback" not in err and code in ((0, 130) if delay else (0,)), where
        assert complaints(err) == ["error: interrupted"] * (
            code == 130 and "stopped by SIGINT" not in said
        ), where
        assert [
            path for path in tmp_path.rglob(".partial*") if path.parent.name != str(case)
        ] == [], where
        if code == 0:  # the first ones compile
            seconds[verb] = min(time.monotonic() - begun, seconds.get(verb, 600))
        counts[f"{verb}: {code}"] += 1
        if verb == "train" and (out / "config.json").exists():
            code, said, err = server.start("train", "--run-dir", out, "--resume").end()
            assert (code, complaints(err)) == (0, []), where + said + err
            assert not different(kept(out), before), where
        shutil.rmtree(out, ignore_errors=True)
    assert not different(kept(trained["run"]), before)


def complaints(err: str) -> list[str]:
    """Lines that are no warning, no note and not what `perplexity` says of its number."""
    lines = [line for line in err.splitlines() if not line.startswith(("warning: ", "note: "))]
    return [line for line in lines if " nats over " not in line]


def default_interrupt() -> None:
    """In a new process: SIGINT may be inherited as ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_output_goes_to_paths_of_every_kind(server, trained, tmp_path, counts):
    """A node stays the node that it was, and the run's own files stay as they are."""
    rng = random.Random(SEED)
    run = Path(trained["run"])
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine").write_text("mine")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    verbs = [verb for verb in VERBS if {"--output", "-o"} & {*VERBS[verb]}]
    verbs = [verb for verb in verbs if verb not in ("export", "ngram")]  # which make folders
    own = [path for path in before if path.name not in ("curve.png", "embedding.png")]
    for case in range(CASES // 8):
        verb = rng.choice(verbs)
        kind = rng.choice(["file", "link", "dangling", "FIFO", "device", "full", "folder", "own"])
        path = tmp_path / f"{case}"
        reader = None
        if kind == "file":
            path.write_text("old")
        elif kind in ("link", "dangling"):
            path.symlink_to(home / ("mine" if kind == "link" else f"new{case}"))
        elif kind == "FIFO":
            os.mkfifo(path)
            reader = subprocess.Popen(["wc", "-c", path], stdout=subprocess.PIPE)
        elif kind in ("device", "full"):
            try:
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3 if kind == "device" else 7))
            except PermissionError:  # only root may
                continue
        elif kind == "folder":
            path.mkdir()
        else:
            path = rng.choice(own)
        node = path.lstat()
        code, out, err = server.start(*command_of(verb, trained, path)).end()
        where = f"seed {SEED}, case {case}: {verb} to a {kind} -> {code}: {out[-300:]} {err}"
        assert "Traceback" not in err and code == (1 if kind in ("full", "folder", "own") else 0), (
            where
        )
        assert len(complaints(err)) == code and ".partial" not in err, where
        if kind not in ("file", "own"):
            assert (path.lstat().st_mode, path.lstat().st_ino) == (node.st_mode, node.st_ino), where
        if kind == "link":
            assert (home / "mine").read_bytes() != b"mine", where
            (home / "mine").write_text("mine")
        if reader is not None:
            assert int(reader.communicate(timeout=60)[0].split()[0]) > 0, where
        counts[f"{kind}: {code}"] += 1
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before, (
            where
        )


def test_long_and_regular_texts_take_linear_time(server, trained, tmp_path, counts):
    """`Command.end` kills what computes for too long."""
    rng = random.Random(SEED)
    units = [
        ".",
        "'",
        "'s",
        "-",
        "a",
        "1",
        ",",
        "(",
        " ",
        "\t",
        "\n",
        "\r\n",
        "<",
        "<unk>",
        "N",
        "%",
        "$",
        "a'",
        ". ",
        "é",
        "n't",
    ]
    for case in range(CASES // 8):
        text = tmp_path / "text"
        unit = "".join(rng.choices(units, k=rng.randrange(1, 3)))
        text.write_text(unit * (200_000 // len(unit)) + "\n")
        how = rng.choice(["none", "ptb"])
        verb = rng.choice(
            [("surprisal", "--tokenizer", how), ("evaluate", "--text"), ("perplexity",)]
        )
        last = [text.read_text()[:100_000]] if verb == ("perplexity",) else [text]
        code, out, err = server.start(verb[0], trained["run"], *verb[1:], *last).end()
        where = f"seed {SEED}, case {case}: {verb} of {unit!r} -> {code}: {out[-300:]} {err[-300:]}"
        assert code in (0, 1, 2) and "Traceback" not in err, (
            where
        )  # (2: an argument that begins with -)
        counts[f"{verb[0]}: {code}"] += 1


pytestmark = pytest.mark.slow
