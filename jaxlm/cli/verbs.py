"""The table of verbs, `@verb`, which adds a function to it, and the arguments that several verbs take."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.parsing import Parser, some_path, suggest
from jaxlm.errors import RunDirError
from jaxlm.terminal import flag_text

if TYPE_CHECKING:
    from jaxlm.scoring.language_model import LanguageModel

Action = Callable[[argparse.Namespace], int | None]  # returns an exit code, or None for 0
Adder = Callable[[Parser], None]  # adds arguments to a parser


@dataclass(frozen=True)
class Verb:
    """A verb of the command line: its arguments' adders are in the order of help."""

    name: str
    help: str
    action: Action
    adders: tuple[Adder, ...]
    epilog: str | None
    uses_jax: bool

    def parser(self, arguments: Sequence[str] = ()) -> Parser:
        """The parser of the arguments after the verb."""
        parser = Parser(
            arguments, prog=f"jaxlm {self.name}", description=self.help, epilog=self.epilog
        )
        parser.set_defaults(verb=self)
        for add in self.adders:
            add(parser)
        return parser


VERBS: dict[str, Verb] = {}  # by name, in the order of help


def verb(
    help: str, *adders: Adder, epilog: str | None = None, uses_jax: bool = True
) -> Callable[[Action], Action]:
    """Adds the function below it to the verbs, under its own name; the fields are those of `Verb`."""

    def register(action: Action) -> Action:
        name = action.__name__.rstrip("_").replace(
            "_", "-"
        )  # (`import_`: `import` is a keyword of Python)
        VERBS[name] = Verb(name, help, action, adders, epilog, uses_jax)
        return action

    return register


def argument(*names: str, values: Sequence[str] = (), rare: bool = False, **options: Any) -> Adder:
    """An argument, as argparse takes it; the shell completes `values`, and a `rare` one is in `--help-all` alone."""

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


def pathname(name: str, metavar: str, help: str, **options: Any) -> Adder:
    """An argument that is a path."""
    return argument(name, type=some_path, metavar=metavar, help=help, **options)


def switch(name: str, help: str) -> Adder:
    """A flag without a value."""
    return argument(name, action="store_true", help=help)


def output(help: str, **options: Any) -> Adder:
    """`-o`, the file or folder that a verb makes."""
    return argument("-o", "--output", type=some_path, metavar="FILE", help=help, **options)


RUN = pathname("run", "RUN", "the run's directory")
_WHICH = "last (default), best or a step"
CHECKPOINT = argument(
    "--checkpoint", default="last", metavar="WHICH", values=("last", "best"), help=_WHICH
)
MODEL = (RUN, CHECKPOINT)
_SPLIT = "split at white space, or as in Penn Treebank's files (default: as the training text)"
TOKENIZER = argument("--tokenizer", choices=("none", "ptb"), help=_SPLIT)
_WHERE = (
    "where Penn Treebank's files are (else $JAXLM_DATA, data/ptb, the user's cache, a download)"
)
DATA_DIR = pathname("--data-dir", "DIR", _WHERE)
JSON = switch("--json", "print JSON")


def check_run(run: Path) -> None:
    """Raises RunDirError if a path is no directory, or holds a sweep."""
    if not run.is_dir():
        here = [path.parent for path in Path("runs").glob("*/config.json")]
        other = f", such as {max(here)}" if here else ""
        command = f"jaxlm train {flag_text('--run-dir', run)}"
        raise RunDirError(
            f"there is no directory {run}: name one{other}, or train a run with `{command}`"
        )
    if (run / "trials").exists() and not (run / "config.json").exists():
        raise RunDirError(f"{run} holds a sweep: name one of the runs in {run / 'trials'}")


def loaded(run: Path, checkpoint: str) -> "LanguageModel":
    """The model of RUN and --checkpoint. Raises JaxlmError where there is none, or it is damaged."""
    check_run(run)

    from jaxlm.runs.loading import load

    return load(run, checkpoint)


def complete() -> None:
    """Answers the shell and ends the process, if the shell started it for completion by argcomplete."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    _, *line = os.environ.get("COMP_LINE", "").split() or ("",)
    parser = Parser(
        [*line, "--help-all"]
    )  # so that all fields of the kinds on the line are completed
    parser.add_argument("verb", choices=VERBS)
    for add in VERBS[line[0]].adders if line and line[0] in VERBS else ():
        add(parser)
    argcomplete.autocomplete(parser)
