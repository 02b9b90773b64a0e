"""Arguments of verbs: their parser, `@command`, and the arguments that several verbs take."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jaxlm.base.fields import specs
from jaxlm.base.packaged import NAME, resolved
from jaxlm.base.terminal import say
from jaxlm.cli.ending import UNPARSED, fail

LARGEST = 2**31 - 1
BETWEEN_GROUPS = Path("-")  # a `--` on the command line, as `two_groups` leaves it among the paths
_NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")


class Parser(argparse.ArgumentParser):
    """A parser for one command line.

    Flags are never guessed from a prefix, and a mistake is one line of error.

    Attributes:
        arguments: The command line that it will parse.
        brief: Whether the help that was asked for is the short one.
        has_groups: Whether `--` stands between two groups of paths, and flags may follow it.
    """

    has_groups = False

    def __init__(self, arguments: Sequence[str], **options: Any):
        super().__init__(
            usage="%(prog)s [options]",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
            **options,
        )
        self.color = False  # Python 3.14 colours help; `say` would show the escapes.
        self._negative_number_matcher = _NEGATIVE_NUMBER  # argparse's own knows no exponents.
        self.arguments = arguments
        self.brief = not {"-h", "--help"}.isdisjoint(arguments)
        self.add_argument("-h", "--help", action="help", help="show the arguments used most")
        self.add_argument(
            "--help-all", action="help", help="show every flag, with its limits and its default"
        )

    def parse_args(self, args: Any = (), namespace: Any = None) -> Any:
        """Parses as argparse does; an optional positional argument may also come after flags."""
        for token in args:
            if token.startswith("--") and token.endswith("=--"):  # argparse raises an IndexError.
                self.error(f"argument {token[:-3]}: expected a value, found '--'")
        if self.has_groups:
            args = [str(BETWEEN_GROUPS) if token == "--" else token for token in args]
        if "--" in args:  # Before Python 3.12 `parse_intermixed_args` loses it.
            return super().parse_args(args, namespace)
        return self.parse_intermixed_args(args, namespace)

    def print_help(self, file: Any = None) -> None:
        """Prints help; argparse's own method ignores a full disk."""
        say(self.format_help(), file=file, end="")

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line of error; beside an unknown flag stands the nearest."""
        unknown = re.match(r"unrecognized arguments: (?:[^-]\S* )*(--[^\s=]+)", message)
        if unknown:
            similar = difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
            if similar:
                message += f" (did you mean {similar[0]}?)"
        raise SystemExit(fail(f"{message} (see {self.prog} --help)", UNPARSED))


Action = Callable[[argparse.Namespace], int | None]  # returns an exit code, or None for 0
Adder = Callable[[Parser], None]  # adds arguments to a parser


@dataclass(frozen=True)
class Command:
    """What a verb does, and its arguments.

    Attributes:
        action: The function that acts on the parsed arguments.
        adders: What adds the arguments to a parser, in the order of help.
        epilog: The last paragraph of help.
    """

    action: Action
    adders: tuple[Adder, ...]
    epilog: str | None

    def add_to(self, parser: Parser) -> None:
        """Adds the arguments to a parser."""
        for add in self.adders:
            add(parser)


def command(*adders: Adder, epilog: str | None = None) -> Callable[[Action], Command]:
    """Makes the function below it the `Command` that the table of verbs names.

    Args:
        *adders: Its arguments, in the order of help.
        epilog: The last paragraph of help.

    Returns:
        The decorator.
    """
    return lambda action: Command(action, adders, epilog)


def argument(
    names: str,
    metavar: str,
    help: str,
    *,
    values: Sequence[str] = (),
    rare: bool = False,
    **options: Any,
) -> Adder:
    """An argument of a verb.

    Args:
        names: Its name, or its flags with spaces between.
        metavar: How help calls its value; a flag without a value has none.
        help: Its line of help.
        values: What the shell completes.
        rare: Whether `--help-all` alone shows it.
        **options: As for argparse's `add_argument`.

    Returns:
        What adds it to a parser, and to the usage if it must be given.
    """
    if metavar:
        options["metavar"] = metavar

    def add(parser: Parser) -> None:
        shown = argparse.SUPPRESS if rare and parser.brief else help
        suggest(parser.add_argument(*names.split(), help=shown, **options), values)
        if not names.startswith("-"):
            usages = {
                "?": f"[{metavar}]",
                "*": f"[{metavar} ...]",
                "+": f"{metavar} [{metavar} ...]",
            }
            parser.usage = f"{parser.usage} {usages.get(options.get('nargs', ''), metavar)}"
        elif options.get("required"):
            parser.usage = f"{parser.usage} {names.split()[0]} {metavar}"

    return add


def choice(
    name: str,
    choices: Sequence[str],
    help: str,
    **options: Any,
) -> Adder:
    """An argument that takes one of a few values.

    Args:
        name: Its flag.
        choices: The values.
        help: Its line of help.
        **options: As for argparse's `add_argument`.

    Returns:
        What adds it to a parser.
    """
    return argument(name, "", help, choices=choices, **options)


def pathname(
    names: str,
    metavar: str,
    help: str,
    **options: Any,
) -> Adder:
    """An argument that is a path.

    Args:
        names: Its name, or its flags with spaces between.
        metavar: How help calls its value.
        help: Its line of help.
        **options: As for argparse's `add_argument`.

    Returns:
        What adds it to a parser.
    """
    return argument(names, metavar, help, type=nonempty_path, **options)


def two_groups(
    name: str,
    metavar: str,
    help: str,
) -> Adder:
    """Runs in two groups: `A B -- C D` is parsed to [A, B, BETWEEN_GROUPS, C, D].

    Args:
        name: Its name.
        metavar: How help calls a path.
        help: Its line of help.

    Returns:
        What adds it to a parser.
    """
    add_paths = argument(name, metavar, help, nargs="+", type=run_path)

    def add(parser: Parser) -> None:
        parser.has_groups = True
        add_paths(parser)

    return add


def fields_of(kind: type, *names: str, rare: bool = False) -> Adder:
    """The flags of some declared fields of a dataclass, which checks their values itself.

    Args:
        kind: The dataclass (`jaxlm.base.fields`).
        *names: The fields.
        rare: Whether `--help-all` alone shows them.

    Returns:
        What adds them to a parser.
    """

    def add(parser: Parser) -> None:
        for name in names:
            spec = specs(kind)[name]
            flag = "--" + name.replace("_", "-")
            if spec.type is bool:
                switch(flag, spec.help)(parser)
                continue
            default = getattr(kind, name)
            options: dict[str, Any] = {"type": spec.type, "default": default}
            metavar = "N"
            if spec.choices:
                metavar = ""
                options["choices"] = spec.choices
            help = f"{spec.help} (default {default})" if default else spec.help
            argument(flag, metavar, help, rare=rare, **options)(parser)

    return add


def switch(name: str, help: str) -> Adder:
    """A flag without a value.

    Args:
        name: The flag.
        help: Its line of help.

    Returns:
        What adds it to a parser.
    """
    return argument(name, "", help, action="store_true")


def whole(low: int = 0) -> Callable[[str], int]:
    """The type of an argument that takes a whole number from `low` to `LARGEST`."""

    def read(text: str) -> int:
        with suppress(ValueError):
            if low <= int(text) <= LARGEST:
                return int(text)
        limits = f"of at most {LARGEST:,} and at least {low:,}"
        raise argparse.ArgumentTypeError(f"expected a whole number {limits}, found {text!r}")

    return read


def nonempty_path(text: str) -> Path:
    """The type of an argument that takes a path, which is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found an empty text")
    return Path(text)


def run_path(text: str) -> Path:
    """The type of an argument that names a run: its directory, or `english`."""
    path = nonempty_path(text)
    run = resolved(path)
    if path == Path(NAME) and run == path:
        note = f"note: {path} is the directory here, not the model that comes with jaxlm"
        say(note, file=sys.stderr)
    return run


def suggest(action: argparse.Action, values: Iterable[str]) -> None:
    """Gives an argument the values that the shell completes.

    Args:
        action: What `add_argument` returned.
        values: The values; without any the shell completes files.
    """
    names = list(values)
    if names:
        vars(action)["completer"] = lambda **_: names


RUN = argument("run", "RUN", "the run's directory, or english", type=run_path)
CHECKPOINT = argument(
    "--checkpoint",
    "WHICH",
    "last (default), best or a step",
    default="last",
    values=("last", "best"),
)
MODEL = (RUN, CHECKPOINT)
TOKENIZER = choice(
    "--tokenizer",
    ("none", "ptb"),
    "split at white space, or as in Penn Treebank's files (default: as the training text)",
)
DATA_DIR = pathname(
    "--data-dir",
    "DIR",
    "where Penn Treebank's files are (else $JAXLM_DATA, data/ptb, the user's cache, a download)",
)
JSON = switch("--json", "print JSON")
