"""README.md, CONTRIBUTING.md and docs/:
every block of commands runs, and every link, path and flag is there.

A block of `sh` or `python` is run as it stands, unless the line before it is `<!-- not run: REASON
-->`, or one of the two commands of the README, which .ci/run runs. Of those not run, the commands
are parsed with all their flags. Blocks run in one folder, page after page; docs/training.md's first
trains `runs/mine`, which the others use.
"""

import ast
import contextlib
import csv
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxlm import cli
from jaxlm.base.fields import specs
from jaxlm.cli.config_flags import changes
from jaxlm.cli.verbs import VERBS
from jaxlm.config.config import all_kinds, preset
from jaxlm.config.protocols import PROTOCOLS
from jaxlm.sweeps.space import read_space

ROOT = Path(__file__).resolve().parents[1]
FIRST_PAGES = ("training", "surprisal")  # whose runs other pages use
DOCS = sorted(
    (
        path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        for path in (ROOT / "docs").rglob("*.md")
    ),
    key=lambda page: (page != "training", page not in FIRST_PAGES, page),
)
PAGES = {
    name: (ROOT / name).read_text()
    for name in ("README.md", *(f"docs/{page}.md" for page in DOCS), "CONTRIBUTING.md")
}
BLOCK = re.compile(
    r"(?:^ *<!-- (?P<marker>.*?) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = re.compile(r"not run: \w+|main$|tests$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    marker: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Its lines of shell, each whole and without its comment."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [command for line in lines if (command := re.sub(r"(^|\s+)# .*", "", line).strip())]


def blocks_of(page: str) -> list[Block]:
    found = []
    for match in BLOCK.finditer(PAGES[page]):
        text = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        line = PAGES[page].count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match["language"], text, match["marker"]))
    return found


BLOCKS = [
    block for page in PAGES for block in blocks_of(page) if block.language in ("sh", "python")
]  # (not R's)
RUN = [block for block in BLOCKS if block.marker is None]
PARSED = [block for block in BLOCKS if block.marker is not None]
FIRST = next(block for block in RUN if block.page == "docs/training.md")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the experiments, `jaxlm` on the path of its shell,
    and the run of the first block.
    """
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    (folder / "bin").mkdir()
    for name, options in (
        ("python", ""),
        ("jaxlm", " -m jaxlm"),
    ):  # (a link to python would miss its environment)
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{options} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    run(FIRST, folder)
    return folder


def run(block: Block, folder: Path) -> None:
    with contextlib.chdir(folder):
        if block.language == "python":
            exec(
                compile("\n" * block.line + block.text, block.page, "exec"),
                {"__name__": "__main__"},
            )
            return
        assert block.language == "sh"
        if "<<" in block.text:  # a document in the shell is no list of commands
            assert in_shell(block.text) == 0, str(block)
            return
        for command in block.commands:
            assert execute(command) == 0, f"{block}: {command}"


def execute(command: str) -> int:
    """A command's exit code: in this process,
    where it is `jaxlm` or an experiment and nothing else.
    """
    words = shlex.split(command)
    operators = set(shlex.shlex(command, punctuation_chars=True)) & {"|", "<", ">", "&&"}
    if operators or words[0] not in ("jaxlm", "python") or words[1] == "-c":
        return in_shell(command)
    return in_process(words)


def in_shell(text: str) -> int:
    variables = {"PATH": f"{Path('bin').resolve()}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], env={**os.environ, **variables}
    ).returncode


def in_process(words: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[1:] if words[0] == "python" else words)
        try:
            if words[0] == "jaxlm":
                return cli.main(words[1:])
            patch.syspath_prepend(Path(words[1]).parent.resolve())  # as `python` does
            runpy.run_path(words[1], run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs(block, place):
    if block is not FIRST:
        run(block, place)


@pytest.mark.parametrize("block", PARSED, ids=str)
def test_a_block_that_is_not_run_parses(block, monkeypatch):
    assert NOT_RUN.match(block.marker), (
        f"{block}: give a reason, as in <!-- not run: trains for hours -->"
    )
    if block.language == "python":
        ast.parse(block.text)
        return
    for command in block.commands:
        for part in command.split("&&"):
            parses(shlex.split(part), monkeypatch)


ROWS = "\n".join(line for line in PAGES["README.md"].splitlines() if line.startswith("|"))


@pytest.mark.parametrize("command", re.findall(r"`((?:jaxlm|python) [^`]+)`", ROWS))
def test_a_command_of_the_readme_s_table_parses(command, monkeypatch):
    parses(shlex.split(command), monkeypatch)


def parses(words: list[str], monkeypatch) -> None:
    """Parses a command of jaxlm or of an experiment, up to its config and space.
    Other programs are nobody's here.
    """
    parsed = []
    monkeypatch.setattr(
        cli,
        "_run",
        lambda verb, given: parsed.append((verb.name, verb.parser(given).parse_args(given))) or 0,
    )
    script = next(
        (place for place, word in enumerate(words) if word.startswith("experiments/")), None
    )
    if script is not None:
        assert (ROOT / words[script]).is_file(), words
        source = (ROOT / words[script]).read_text()
        if "\nfrom jaxlm.cli import main" not in source:  # it has flags of its own
            shared = (
                ROOT / f"experiments/{name}.py"
                for name in re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)
            )
            source += "".join(path.read_text() for path in shared if path.is_file())
            assert [
                flag for flag in words if flag.startswith("--") and f'"{flag}"' not in source
            ] == []
            return
        monkeypatch.chdir(ROOT)
        assert in_process(["python", *words[script:]]) == 0
    elif (
        "jaxlm" in words and "-m" not in words and "decay" not in " ".join(words)
    ):  # (CONTRIBUTING.md's, see below)
        in_process(["jaxlm", *words[words.index("jaxlm") + 1 :]])
        assert parsed
    for verb, args in parsed:
        if verb in ("train", "sweep"):
            config = preset(args.preset or "small").replace(**changes(args))
            if verb == "sweep" and args.set:
                read_space(dict(setting.split("=", 1) for setting in args.set), config)


def test_every_page_of_the_manual_is_tested_and_linked():
    linked = PAGES["README.md"] + (
        PAGES["docs/start-here.md"] + PAGES["docs/performance.md"]
    ).replace("](", "](docs/")
    assert [
        name for name in DOCS if f"](docs/{name}.md" not in linked and name != "start-here"
    ] == []


def test_the_readme_is_a_page_and_prose_keeps_to_its_width():
    assert len(PAGES["README.md"].splitlines()) <= 90
    wide = [
        (page, line)
        for page, text in PAGES.items()
        for line in text.splitlines()
        if len(line) > 120 and not line.startswith("|")
    ]
    assert wide == []


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_and_paths_resolve(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.is_file(), f"{page} links to {target}"
        assert not anchor or anchor in map(
            slug, re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
        ), target
    if page.startswith("docs/"):
        named = re.findall(
            r"`((?:jaxlm|tests|experiments)/[\w/.-]+\.\w+|(?:tests|experiments)/[\w/-]*)`", text
        )
        assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "file", sorted((ROOT / "docs/lab").glob("*.csv")), ids=lambda file: file.name
)
def test_the_data_of_the_laboratory_is_a_table_and_linked(file):
    head, *rows = csv.reader(file.open(newline=""))
    assert rows and {len(row) for row in rows} == {len(head)}
    assert f"({file.name})" in PAGES["docs/lab/README.md"]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_flag_that_the_manual_names_exists():
    kinds = [*(kind for _, _, kind in all_kinds()), *PROTOCOLS.values()]
    known = {f"--{name.rstrip('_').replace('_', '-')}" for kind in kinds for name in specs(kind)}
    for verb in VERBS.values():
        known |= set(re.findall(r"--[a-z][a-z0-9-]+", verb.parser().format_help()))
    for page, text in PAGES.items():
        named = set(re.findall(r"`(--[a-z][a-z0-9-]+)", text))
        assert named <= known, f"{page}: {sorted(named - known)}"


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of jaxlm and its tests with the models that CONTRIBUTING.md adds."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("jaxlm", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    layers = [block.text for block in blocks_of("CONTRIBUTING.md") if block.language == "python"]
    for name, layer in zip(("decay", "mgu"), layers, strict=True):
        (folder / f"jaxlm/models/{name}.py").write_text(layer)
    package = folder / "jaxlm/models/__init__.py"
    package.write_text(package.read_text().replace("import lstm,", "import lstm, decay, mgu,"))
    return folder


@pytest.mark.slow
def test_a_model_is_added_by_following_contributing(extended):
    environment = {**os.environ, "PYTHONPATH": str(extended)}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=extended,
            env=environment,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    laws = python(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "-k",
        "mgu or (decay and not weight-decay])",
        "tests/test_laws.py",
        "tests/test_laws_of_devices.py",
    )
    assert int(re.findall(r"(\d+) passed", laws)[0]) >= 30
    block = next(block for block in blocks_of("CONTRIBUTING.md") if "--model decay" in block.text)
    for command in block.commands:
        assert "decay" in command
        python(
            "-c",
            "import sys; from jaxlm.cli import main; sys.exit(main())",
            *shlex.split(command)[1:],
        )
