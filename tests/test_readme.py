"""README.md: its Python runs, and each of its commands parses and names files that are there."""

import re
import shlex
from pathlib import Path

import pytest

import jaxlm
from jaxlm import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line.split(" # ")[0].strip() for block in blocks("sh") for line in block.splitlines()
            if line.startswith(("jaxlm ", "python experiments/"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_parses(command, monkeypatch):
    parsed = []
    monkeypatch.setattr(cli, "_run", lambda parser, arguments: parsed.append(parser.parse_args(arguments)) or 0)
    program, *arguments = shlex.split(command)
    if program == "jaxlm":
        cli.main(arguments)
        assert parsed
    else:
        assert (ROOT / arguments[0]).is_file()
        if arguments[0].endswith("ptb_small.py"):
            cli.train_command("small", "", arguments[1:])
            assert parsed


@pytest.mark.parametrize("call", ["jaxlm.train(", "jaxlm.sweep("])
def test_the_program_that_trains_runs(call):
    code = next(block for block in blocks("python") if call in block)
    exec(compile(code, "README.md", "exec"), {})


def test_the_program_that_restores_runs(tiny_run):
    result, _ = tiny_run
    code = next(block for block in blocks("python") if "jaxlm.load(" in block)
    words = jaxlm.load(str(result.run_dir)).vocab.words
    code = code.replace("runs/mine", str(result.run_dir)).replace('"friday"', repr(words[5]))
    exec(compile(code, "README.md", "exec"), {})


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README
