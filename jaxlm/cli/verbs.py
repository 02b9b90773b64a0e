"""The table of verbs, and `@verb`, which adds a function to it."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.parsing import Parser, some_path, suggest
from jaxlm.errors import RunDirError
from jaxlm.terminal import flag

if TYPE_CHECKING:
    from jaxlm.scoring.language_model import LanguageModel

Action = Callable[[argparse.Namespace], int | None]  # returns an exit code, or None for 0
Adder = Callable[[Parser], None]  # adds arguments to a parser


@dataclass(frozen=True)
class Verb:
    """A verb of the command line."""

    name: str
    help: str  # one line
    action: Action
    adders: tuple[Adder, ...]  # of its arguments, in the order of help
    uses_jax: bool  # whether it compiles anything

    def add_arguments(self, parser: Parser) -> None:
        """Adds the verb's arguments to a parser."""
        for add in self.adders:
            add(parser)
        parser.set_defaults(verb=self)

    def parser(self, arguments: Sequence[str] = (), **options: Any) -> Parser:
        """The verb's parser for a command line, as `Parser` takes it."""
        parser = Parser(arguments, **{"prog": f"jaxlm {self.name}", "description": self.help, **options})
        self.add_arguments(parser)
        return parser


VERBS: dict[str, Verb] = {}  # by name, in the order of help


def verb(help: str, *adders: Adder, uses_jax: bool = True) -> Callable[[Action], Action]:
    """Adds the function below it to the verbs, under its own name.

    Args:
        help: one line.
        *adders: what adds its arguments, usually `argument(...)`.
        uses_jax: whether it compiles anything.
    """

    def register(action: Action) -> Action:
        name = action.__name__.rstrip("_").replace("_", "-")  # (`import_`: `import` is a keyword of Python)
        VERBS[name] = Verb(name, help, action, adders, uses_jax)
        return action

    return register


def argument(*names: str, values: Sequence[str] = (), rare: bool = False, **options: Any) -> Adder:
    """An argument, as argparse's `add_argument` takes it.

    Args:
        *names: its flags, or its name where it has none.
        values: some that the shell completes.
        rare: leave it to `--help-all`.
        **options: argparse's.
    """

    def add(parser: Parser) -> None:
        hidden = {"help": argparse.SUPPRESS} if rare and parser.brief else {}
        suggest(parser.add_argument(*names, **{**options, **hidden}), values)
        name = options.get("metavar", names[0])
        if not names[0].startswith("-"):
            shown = {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} [{name} ...]"}
            parser.usage = f"{parser.usage} {shown.get(options.get('nargs', ''), name)}"
        elif options.get("required"):
            parser.usage = f"{parser.usage} {names[0]} {name}"

    return add


def output(help: str, **options: Any) -> Adder:
    """`-o`, the file or folder that a verb makes."""
    return argument("-o", "--output", type=some_path, metavar="FILE", help=help, **options)


RUN = argument("run", type=some_path, metavar="RUN", help="the run's directory")
_WHICH = ("last", "best")
CHECKPOINT = argument(
    "--checkpoint", default="last", metavar="WHICH", values=_WHICH, help="last (default), best or a step"
)
MODEL = (RUN, CHECKPOINT)
TOKENIZER = argument(
    "--tokenizer",
    choices=("none", "ptb"),
    help="split at white space, or as Penn Treebank's files are (default: as the text that the model was trained on)",
)
DATA_DIR = argument(
    "--data-dir",
    type=some_path,
    metavar="DIR",
    help="where Penn Treebank's files are (else $JAXLM_DATA, data/ptb, the user's cache, a download)",
)


def check_run(run: Path) -> None:
    """Raises RunDirError if a path is no directory, or holds a sweep."""
    if not run.is_dir():
        here = sorted(Path("runs").glob("*/config.json"), key=lambda path: path.parent.name)
        other = f", such as {here[-1].parent}" if here else ""
        raise RunDirError(
            f"there is no directory {run}: name one{other}, or train a run with `jaxlm train {flag('--run-dir', run)}`"
        )
    if (run / "trials").exists() and not (run / "config.json").exists():
        raise RunDirError(f"{run} holds a sweep: name one of the runs in {run / 'trials'}")


def loaded(run: Path, checkpoint: str) -> "LanguageModel":
    """The model of RUN and --checkpoint. Raises JaxlmError where there is none, or it is damaged."""
    check_run(run)

    from jaxlm.runs.loading import load

    return load(run, checkpoint)
