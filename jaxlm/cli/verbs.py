"""The table of verbs, and `@verb`, which adds a function to it."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.cli.parsing import some_path, suggest
from jaxlm.errors import RunDirError
from jaxlm.terminal import flag

Action = Callable[[argparse.Namespace], int | None]
Adder = Callable[[argparse.ArgumentParser, Sequence[str]], None]  # adds arguments to a parser, given the command line


@dataclass(frozen=True)
class Verb:
    """A verb of the command line."""

    name: str
    help: str
    action: Action
    adders: tuple[Adder, ...]
    uses_jax: bool

    def add_arguments(self, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
        """Adds the verb's arguments to a parser.

        Args:
            parser: the verb's own.
            arguments: the command line, which decides the kinds that `--help` shows.
        """
        for add in self.adders:
            add(parser, arguments)


VERBS: dict[str, Verb] = {}  # by name, in the order of help


def verb(help: str, *adders: Adder, uses_jax: bool = True) -> Callable[[Action], Action]:
    """Adds the function below it to the verbs, under its own name.

    Args:
        help: one line.
        *adders: what adds its arguments, usually `argument(...)`.
        uses_jax: whether it compiles anything.
    """

    def register(action: Action) -> Action:
        name = action.__name__.rstrip("_").replace("_", "-")  # (`import_`, since that is a word of Python)
        VERBS[name] = Verb(name, help, action, adders, uses_jax)
        return action

    return register


def argument(*names: str, values: Sequence[str] = (), **options: Any) -> Adder:
    """An argument, as argparse's `add_argument` takes it; `values` are some that the shell completes."""

    def add(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
        action = parser.add_argument(*names, **options)
        if values:
            suggest(action, values)

    return add


RUN = argument("run", type=some_path, metavar="RUN", help="the run's directory")
CHECKPOINT = argument(
    "--checkpoint", default="last", metavar="WHICH", values=("last", "best"), help="last (default), best or a step"
)
DATA_DIR = argument(
    "--data-dir",
    type=some_path,
    metavar="DIR",
    help="where Penn Treebank's files are (else $JAXLM_DATA, data/ptb, the user's cache, a download)",
)


def check_run(run: Path) -> None:
    """Raises RunDirError where a path is no directory, or holds a sweep."""
    if not run.is_dir():
        here = sorted(Path("runs").glob("*/config.json"), key=lambda path: path.parent.name)
        other = f", such as {here[-1].parent}" if here else ""
        raise RunDirError(
            f"there is no directory {run}: name one{other}, or train a run with `jaxlm train {flag('--run-dir', run)}`"
        )
    if (run / "plan.json").exists() and not (run / "config.json").exists():
        raise RunDirError(f"{run} holds a sweep: name one of the runs in {run / 'trials'}")
