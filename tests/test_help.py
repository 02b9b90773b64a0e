"""Help by task, by verb and by flag, on one screen; completion in the shell; what help loads."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from terminals import run

from jaxlm import cli
from jaxlm.base.fields import specs
from jaxlm.cli import TASKS, main
from jaxlm.cli.verbs import VERBS
from jaxlm.config.config import KINDS, PRESETS, all_kinds, preset

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "chosen", [{slot: kind} for slot, kinds in KINDS.items() for kind in kinds]
)
def test_help_shows_the_fields_of_the_kinds_chosen_with_their_defaults(chosen):
    line = [part for slot, kind in chosen.items() for part in (f"--{slot}", kind)]
    code, out, _ = run(["train", "--preset", "zaremba-medium", *line, "--help-all"])
    shown = " ".join(out.split())
    config = preset("zaremba-medium").replace(**chosen)
    assert code == 0 and all(f"{slot} ({kind}):" in shown for slot, kind in config.kinds.items())
    theirs = {name for _, name, _, _ in config.every_field()}
    for _, _, kind in all_kinds():
        for name in specs(kind):
            assert (
                f" --{name.replace('_', '-')} " in shown.replace(",", " ").replace("]", " ")
            ) == (name in theirs)
    for _, _, spec, value in config.every_field():
        entry = shown.split(" ".join(spec.help.split()))[1].split(" --")[0]
        assert spec.unit in entry
        if spec.type is float:
            assert f"default {'none' if value is None else f'{value:g}'})" in entry


def test_help_shows_the_values_of_a_config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(preset("test").replace(model="mingru", init_scale=0.625).to_json())
    _, out, _ = run(["sweep", "--config", str(path), "--help-all"])
    assert "model (mingru)" in out and "0.625" in out
    assert run(["train", "--config", "/no/such", "--help"])[0] == 0


def test_every_verb_is_in_the_help_with_its_own():
    for flag in ("--help", "--help-all"):
        code, out, _ = run([flag])
        assert (
            code == 0
            and all(re.search(f"^ +{name}( |$)", out, re.MULTILINE) for name in VERBS)
            and "128 + N" in out
        )
        for name, one in VERBS.items():
            code, out, _ = run([name, flag])
            assert code == 0 and " ".join(one.help.split()) in " ".join(out.split())


@pytest.mark.parametrize("columns", [80, 150])
def test_help_is_short_and_says_every_sentence_to_its_end(columns, monkeypatch):
    """No line wraps, no sentence is cut, and all flags are in --help-all too."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for line in ([], ["--help"], *([name, "--help"] for name in VERBS)):
        code, out, err = run(line)
        assert (code, err) == (0, "")
        shown = out.splitlines()
        most = {(): 24, ("--help",): 28}.get(tuple(line), 55)
        assert len(shown) <= most, line
        assert max(map(len, shown)) <= columns and "..." not in re.sub(r"\w+ \.\.\.", "", out)
        if line[1:]:
            everything = run([line[0], "--help-all"])[1]
            flag = re.compile(r"^  (-[^ ]+)", re.MULTILINE)
            assert {*flag.findall(out)} <= {*flag.findall(everything)}


def test_help_shows_what_must_be_given_and_the_fields_used_most():
    shown = run(["train", "--help"])[1]
    for often in (
        "--learning-rate",
        "--seed",
        "--batch-size",
        "--hidden-sizes",
        "--embedding-size",
        *PRESETS,
    ):
        assert often in shown
    assert "--momentum" not in shown and "--coordinator" not in shown
    assert "usage: jaxlm export [options] RUN --to TARGET -o FILE" in run(["export", "-h"])[1]


def test_every_verb_that_makes_a_file_takes_it_as_o():
    makers = {"surprisal", "states", "minimal-pairs", "syntaxgym", "export", "report", "ngram"}
    assert {
        name for name in VERBS if re.search("-o( FILE)?, --output FILE", run([name, "--help"])[1])
    } == makers


def test_without_a_verb_there_is_help_by_task(monkeypatch):
    code, out, err = run([])
    assert code == 0 and err == "" and "jaxlm --help" in out
    commands = re.findall(r"  (jaxlm \w.*)$", out, re.MULTILINE)
    assert len(commands) == len(TASKS)
    parsed = []
    monkeypatch.setattr(
        cli, "_run", lambda verb, words: parsed.append(verb.parser(words).parse_args(words)) or 0
    )
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    assert len(parsed) == len(commands)


def test_an_unknown_verb_is_answered_by_the_nearest():
    assert run(["trian"]) == (
        2,
        "",
        "error: there is no verb 'trian'; did you mean train? (see jaxlm --help)\n",
    )
    assert "there is no verb 'x' (see" in run(["x"])[2]


COMPLETED = {
    "jaxlm ev": {"evaluate"},
    "jaxlm train --mod": {"--model", "--model-devices"},
    "jaxlm train --model ": {"lstm", "gru", "mingru"},
    "jaxlm train --model gru --hid": {"--hidden-sizes"},
    "jaxlm train --optimizer muon --momen": {"--momentum"},
    "jaxlm train --preset zaremba-s": {"zaremba-small"},
    "jaxlm evaluate x --checkpoint ": {"last", "best"},
    "jaxlm evaluate x --split v": {"valid"},
    "jaxlm sweep --strat": {"--strategy"},
    "jaxlm train --forg": {"--forget-bias"},
    "jaxlm train --model gru --forg": set(),
}
# A process for each line, all from one that has imported the verbs' modules.
COMPLETE = """
import os, sys
import jaxlm.cli.sweeping, jaxlm.cli.training, jaxlm.cli.using
from jaxlm.cli import main
for place, typed in enumerate(sys.argv[1:]):
    if not os.fork():
        os.environ |= {"COMP_LINE": typed, "COMP_POINT": str(len(typed))}
        os.environ["_ARGCOMPLETE_STDOUT_FILENAME"] = str(place)
        main()
        os._exit(1)
    assert os.wait()[1] == 0, typed
"""


@pytest.fixture(scope="module")
def completions(tmp_path_factory) -> dict[str, set[str]]:
    """What the shell is given for each line."""
    folder = tmp_path_factory.mktemp("completions")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_TYPE": "9",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE, *COMPLETED],
        cwd=folder,
        env=environment,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)
    return {
        typed: set((folder / str(place)).read_text().split())
        for place, typed in enumerate(COMPLETED)
    }


@pytest.mark.parametrize("typed", COMPLETED)
def test_the_shell_completes(typed, completions):
    expected = COMPLETED[typed]
    found = completions[typed]
    assert expected <= found if expected else not any(word.startswith("-") for word in found)
    if expected and not typed.endswith(" "):
        assert found == expected


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["trian"]])
def test_what_names_no_verb_loads_nothing_heavy(arguments):
    heavy = {"jax", "rich", "matplotlib", "argcomplete", "numpy"}
    code = (
        "import sys; from jaxlm.cli import main\n"
        "code = main(sys.argv[1:])\n"
        f"sys.exit(70 if {{*sys.modules}} & {heavy} else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == (2 if "trian" in arguments else 0), done.stderr
