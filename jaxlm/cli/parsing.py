"""Arguments: a parser whose errors are one line, values with limits, and a flag for every field of every kind."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from jaxlm.cli.help import FIELD, brief, later, wrapped
from jaxlm.config.config import FIXED, KINDS, SECTIONS, Config, all_kinds, kind_of
from jaxlm.config.fields import Spec, either, setting_text, specs
from jaxlm.config.presets import PRESETS, preset
from jaxlm.errors import JaxlmError
from jaxlm.terminal import printable, say

MOST_CONFIG_BYTES = 1 << 20
MOST_CHARACTERS = 400  # of a number
MOST_SHOWN = 200  # characters of an argument that an error repeats
LARGEST = 2**31 - 1
_OFTEN = ("model", "hidden_sizes", "optimizer", "learning_rate", "epochs", "corpus")  # that `train --help` shows
_SUMMARIES = {"train": "counts of the run", "data": "text"}


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(text, width)


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, *_: Any) -> None:
        say(parser.format_help(), end="")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """Flags are never guessed from a prefix, and a mistake is one line on standard error.

    Args:
        help_text: makes what `--help` prints (default: a line for each flag).
        **options: as argparse takes them.
    """

    def __init__(self, *, help_text: Callable[[], str] | None = None, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, add_help=False, **options)
        self._help_text = help_text or partial(brief, self)
        self.add_argument("-h", "--help", action="help", help="the arguments used most, a line each")
        self.add_argument(
            "--help-all",
            action=_HelpAll,
            nargs=0,
            dest="help",
            default=argparse.SUPPRESS,
            help="every flag, with its limits and its default",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = _with_negative_numbers(sys.argv[1:] if args is None else args)
        for token in args:
            if token == "--":
                break
            if token.startswith("-") and token.endswith("=--"):  # argparse would take it for no value at all
                self.error(f"argument {token[:-3]}: expected a value, found '--'")
        found, unknown = super().parse_known_args(args, namespace)
        unknown = self._taken_late(found, unknown)
        if unknown:  # (here, since the parser of all verbs would name its own --help)
            flags = re.findall("--[a-z0-9-]+", self.format_usage())
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{f' (did you mean {near[0]}?)' if near else ''}")
        return found, unknown

    def _taken_late(self, found: argparse.Namespace, unknown: list[str]) -> list[str]:
        """Gives the last positional, where it is optional, what came after flags: argparse took it for missing by then.

        Returns what is still unknown.
        """
        positionals = self._get_positional_actions()
        last = positionals[-1] if positionals else None
        if not unknown or last is None or any(text.startswith("-") and text != "-" for text in unknown):
            return unknown
        try:
            if last.nargs == "*":
                values = [self._get_value(last, text) for text in unknown]
                setattr(found, last.dest, [*(getattr(found, last.dest) or ()), *values])
                return []
            if last.nargs == "?" and getattr(found, last.dest) is last.default:
                setattr(found, last.dest, self._get_value(last, unknown[0]))
                return unknown[1:]
        except argparse.ArgumentError as error:
            self.error(str(error))
        return unknown

    def print_help(self, file: Any = None) -> None:
        say(self._help_text(), file=file, end="")  # (argparse's own ignores a full disk)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            near = difflib.get_close_matches(str(value), action.choices, 1)
            raise argparse.ArgumentError(
                None, f"there is no verb {_quoted(str(value))}{f'; did you mean {near[0]}?' if near else ''}"
            )
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        say(f"error: {printable(_shortened(message, 3 * MOST_SHOWN))} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def whole(low: int = 0, high: int = LARGEST) -> Callable[[str], int]:
    """The type of an argument that takes a whole number within limits."""

    def read(text: str) -> int:
        value = whole_number(text)
        if not low <= value <= high:
            limits = f"of at least {low:,}" + (f" and at most {high:,}" if high < LARGEST or value > high else "")
            raise argparse.ArgumentTypeError(f"expected a whole number {limits}, found {value}")
        return value

    return read


def whole_number(text: str) -> int:
    """A whole number of at most 20 digits, as in -12."""
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text.strip(), re.ASCII):
        raise argparse.ArgumentTypeError(f"expected a whole number, found {_quoted(text)}")
    return int(text)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between, as in 256,128."""
    with suppress(argparse.ArgumentTypeError):
        if len(text) <= MOST_CHARACTERS:
            return tuple(whole_number(part) for part in text.split(",") if part.strip())
    raise argparse.ArgumentTypeError(
        f"expected whole numbers with commas between, as in 256,128, found {_quoted(text)}"
    )


def number(text: str) -> float:
    """A number, as in 0.5 or 1e-3."""
    with suppress(ValueError):
        if len(text) <= MOST_CHARACTERS and text.isascii():
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number, found {_quoted(text)}")


def number_or_none(text: str) -> float | None:
    """A number, or `none` where the mechanism is absent."""
    return _or_none(number, "a number", text)


def whole_number_or_none(text: str) -> int | None:
    """A whole number, or `none` where the mechanism is absent."""
    return _or_none(whole_number, "a whole number", text)


def _or_none(kind: Callable[[str], Any], name: str, text: str) -> Any:
    with suppress(argparse.ArgumentTypeError):
        return None if text.strip().lower() == "none" else kind(text)
    raise argparse.ArgumentTypeError(f"expected {name} or none, found {_quoted(text)}")


def some_path(text: str) -> Path:
    """A path that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found an empty text")
    return Path(text)


def read_text(path: Path, most: int = MOST_CONFIG_BYTES) -> str:
    """A small file that the user named.

    Args:
        path: a regular file of UTF-8.
        most: the most bytes that it may have.

    Raises:
        JaxlmError: it cannot be read.
    """
    from jaxlm import files  # (its imports would take a fifth of the time of --help)

    try:
        return text_of(files.read_bytes(path, most), path)
    except OSError as error:
        raise JaxlmError(f"{path} cannot be read: {files.reason(error)}") from None


def text_of(data: bytes, name: object) -> str:
    """The text of some bytes as a corpus's files have it: without a byte order mark, its lines ended by LF alone.

    Raises JaxlmError where it is binary or not UTF-8.
    """
    from jaxlm.data.text import check_no_zero_byte, normalize_newlines

    check_no_zero_byte(data, str(name))
    try:
        return normalize_newlines(data.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise JaxlmError(f"{name} is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from None


def add_config_flags(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    start: Config | None = None,
    often: Sequence[str] = _OFTEN,
) -> None:
    """Adds a flag for the kind of model, optimiser and schedule, and for every field of every kind.

    Args:
        parser: what to add to.
        arguments: the command line, whose --preset, --config and kinds decide the fields and defaults shown.
        start: the config that flags change (default: that of --preset or --config).
        often: the fields that `--help` shows; `--help-all` shows all.
    """
    shown = _shown_config(arguments, start)
    hidden = parser.add_argument_group("fields of other kinds")  # accepted, so that Config.replace can explain
    taken: set[str] = set()
    for section in SECTIONS:
        part = getattr(shown, section)
        title = f"{section} ({kind_of(section, part)})" if section in KINDS else _SUMMARIES[section]
        group = parser.add_argument_group(title, _summary(part))
        if section in KINDS:
            kind = group.add_argument(
                f"--{section}",
                dest=FIELD + section,
                default=argparse.SUPPRESS,
                metavar="KIND",
                help=f"{either(list(KINDS[section]))} (default {kind_of(section, part)})",
            )
            suggest(kind, KINDS[section])
            if section not in often:
                later(kind)
        for name, spec in specs(type(part)).items():
            taken.add(name)
            added = add_field(group, name, spec, getattr(part, name))
            if name not in often:
                later(added)
    for _, _, kind in all_kinds():
        for name, spec in specs(kind).items():
            if name not in taken:
                taken.add(name)
                _add_flag(hidden, name, spec, argparse.SUPPRESS)


def add_field(group: Any, name: str, spec: Spec, default: Any) -> argparse.Action:
    """Adds the flag of one field, with its unit, limits and default in its help; the argument."""
    details = [spec.unit, _limits(spec), f"default {setting_text(default)}"]
    help = f"{spec.help} ({'; '.join(filter(None, details))})"
    return _add_flag(group, name, spec, help.replace("%", "%%"))


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """The fields and kinds that have a flag on the command line, for `Config.replace`."""
    return {name.removeprefix(FIELD): value for name, value in vars(args).items() if name.startswith(FIELD)}


def starting_config(args: argparse.Namespace) -> Config:
    """The config that the flags' fields change: --config's or --preset's. Raises JaxlmError."""
    if not args.config:
        return preset(args.preset)
    try:
        return Config.from_json(read_text(args.config))
    except JaxlmError as error:
        raise JaxlmError(str(error) if str(args.config) in str(error) else f"{args.config}: {error}") from None


def add_start(group: Any, with_preset: bool = True) -> None:
    """Adds --preset and --config, where the flags' fields start from."""
    if with_preset:
        suggest(
            group.add_argument(
                "--preset",
                default="small",
                metavar="NAME",
                help=f"the recipe to start from: {either(list(PRESETS))} (default small)",
            ),
            PRESETS,
        )
    group.add_argument("--config", type=some_path, metavar="FILE", help="start from a config.json instead")


def suggest(action: argparse.Action, values: Iterable[str]) -> argparse.Action:
    """Gives an argument the values that the shell completes (`completion.py`), and returns it."""
    if names := [*values]:
        vars(action)["completer"] = lambda **_: names
    return action


def _add_flag(group: Any, name: str, spec: Spec, help: str) -> argparse.Action:
    flag = "--" + name.rstrip("_").replace("_", "-")
    options: dict[str, Any] = {"dest": FIELD + name, "default": argparse.SUPPRESS, "help": help}
    if spec.type is bool:
        return group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
    optional = any(found.optional for _, _, kind in all_kinds() if (found := specs(kind).get(name)))
    kinds = {
        int: whole_number_or_none if optional else whole_number,
        tuple: whole_numbers,
        float: number_or_none if optional else number,
        str: str,
    }
    none = "|none" * spec.optional
    metavars = {int: f"N{none}", tuple: "N,N", float: f"X{none}", str: "TEXT"}
    metavar = f"{{{','.join(spec.choices)}}}" if spec.choices else metavars[spec.type]
    return suggest(group.add_argument(flag, type=kinds[spec.type], metavar=metavar, **options), spec.choices)


def _limits(spec: Spec) -> str:
    """The limits worth showing: not those of any count."""
    if spec.type not in (int, float):
        return ""
    if spec.type is int:
        spec = replace(
            spec,
            low=spec.low if spec.low > 1 else -float("inf"),
            high=spec.high if spec.high < LARGEST else float("inf"),
        )
        if spec.high < float("inf") and spec.low < 0:
            return f"at most {spec.high:,}"
    return "" if spec.range == "finite" else spec.range


def _summary(part: Any) -> str | None:
    return None if type(part) in FIXED.values() else (type(part).__doc__ or "").split("\n")[0]


def _shown_config(arguments: Sequence[str], start: Config | None) -> Config:
    """The config whose fields and defaults `--help` shows; what is mistaken is left out here, and reported later."""
    found = start or preset("small")
    if not {"-h", "--help", "--help-all"} & {*arguments}:
        return found
    with suppress(JaxlmError):
        if start is None and (name := value_of("--preset", arguments)):
            found = preset(name)
    with suppress(JaxlmError):
        if path := value_of("--config", arguments):
            found = Config.from_json(read_text(Path(path)))
    for slot in KINDS:
        with suppress(JaxlmError):
            if name := value_of(f"--{slot}", arguments):
                found = found.replace(**{slot: name})
    return found


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value that a flag has on a command line."""
    found = None
    for place, token in enumerate(arguments):
        if token == flag:
            found = arguments[place + 1] if place + 1 < len(arguments) else None
        elif token.startswith(f"{flag}="):
            found = token[len(flag) + 1 :]
    return found


def _with_negative_numbers(arguments: Sequence[str]) -> list[str]:
    """The command line with `--flag=-1e-3` for `--flag -1e-3`, which argparse would take for two flags."""
    joined: list[str] = []
    for token in arguments:
        if re.fullmatch(r"-[0-9.]+[eE][+-]?[0-9]+", token) and joined and re.fullmatch("--[a-z][^=]*", joined[-1]):
            joined[-1] += f"={token}"
        else:
            joined.append(token)
    return joined


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= MOST_SHOWN else f"{text[:20]!r}... ({len(text):,} characters)"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
