"""Arguments: a parser whose errors are one line, values with limits, and a flag for every field of every kind."""

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from jaxlm.cli.ending import fail
from jaxlm.config.config import KINDS, SECTIONS, Config, all_kinds, preset
from jaxlm.config.protocols import PROTOCOLS, Plain, protocol_of
from jaxlm.errors import JaxlmError
from jaxlm.fields import Spec, either, setting_text, specs
from jaxlm.terminal import say

FIELD = "field:"  # begins the name under which a field's value is parsed
MOST_CONFIG_BYTES = 1 << 20
LARGEST = 2**31 - 1
_OFTEN = (
    "model",
    "embedding_size",
    "hidden_sizes",
    "optimizer",
    "learning_rate",
)  # fields that `train --help` shows
_OFTEN += ("batch_size", "epochs", "seed", "corpus", "tokens")


class Parser(argparse.ArgumentParser):
    """A parser for one command line. Flags are never guessed from a prefix, and a mistake is one line of error."""

    def __init__(self, arguments: Sequence[str], **options: Any):
        options |= {
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "allow_abbrev": False,
            "add_help": False,
        }
        super().__init__(usage="%(prog)s [options]", **options)
        self.color = False  # (from Python 3.14 on; `say` would show the colours' escapes)
        self.arguments = arguments
        self.brief = bool({"-h", "--help"} & {*arguments})
        self.add_argument("-h", "--help", action="help", help="show the arguments used most")
        self.add_argument(
            "--help-all", action="help", help="show every flag, with its limits and its default"
        )

    def parse_args(self, args: Any = (), namespace: Any = None) -> Any:
        """As argparse's; an optional positional argument may come after flags, and `-1e-3` is a number."""
        joined: list[str] = []
        for token in args:
            if token.startswith("--") and token.endswith("=--"):  # argparse fails on it
                self.error(f"argument {token[:-3]}: expected a value, found '--'")
            if (
                re.fullmatch(r"-[0-9.]+[eE][+-]?[0-9]+", token)
                and joined
                and re.fullmatch("--[a-z][^=]*", joined[-1])
            ):
                joined[-1] += f"={token}"
            else:
                joined.append(token)
        if "--" in joined:  # `parse_intermixed_args` loses it before Python 3.12
            return super().parse_args(joined, namespace)
        return self.parse_intermixed_args(joined, namespace)

    def print_help(self, file: Any = None) -> None:
        say(self.format_help(), file=file, end="")  # (argparse's own ignores a full disk)

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (?:[^-]\S* )*(--[^\s=]+)", message)
        if unknown and (
            near := difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
        ):
            message += f" (did you mean {near[0]}?)"
        raise SystemExit(fail(f"{message} (see {self.prog} --help)", 2))


def whole(low: int = 0) -> Callable[[str], int]:
    """The type of an argument that takes a whole number from `low` to `LARGEST`."""

    def read(text: str) -> int:
        with suppress(ValueError):
            if low <= int(text) <= LARGEST:
                return int(text)
        limits = f"of at most {LARGEST:,} and at least {low:,}"
        raise argparse.ArgumentTypeError(f"expected a whole number {limits}, found {text!r}")

    return read


def some_path(text: str) -> Path:
    """The type of an argument that takes a path, which is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found an empty text")
    return Path(text)


def suggest(action: argparse.Action, values: Iterable[str]) -> None:
    """Gives an argument the values that the shell completes."""
    names = [*values]
    if names:
        vars(action)["completer"] = lambda **_: names


def add_field(
    group: Any, name: str, spec: Spec, default: Any, shown: bool = True, metavar: str = ""
) -> None:
    """Adds the flag of a field; its help names the unit, the limits and the default."""
    details = "; ".join(
        filter(None, (spec.unit, _limits(spec), f"default {setting_text(default)}"))
    )
    help = f"{spec.help} ({details})".replace("%", "%%") if shown else argparse.SUPPRESS
    options: dict[str, Any] = {"dest": FIELD + name, "default": argparse.SUPPRESS, "help": help}
    flag = "--" + name.rstrip("_").replace("_", "-")
    if spec.type is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        return
    none = "|none" * spec.optional
    usual = {int: f"N{none}", tuple: "N,N", float: f"X{none}", str: "TEXT"}[spec.type]
    metavar = metavar or (f"{{{','.join(spec.choices)}}}" if spec.choices else usual)
    suggest(
        group.add_argument(flag, type=partial(_field_value, spec.type), metavar=metavar, **options),
        spec.choices,
    )


def add_config_flags(parser: Parser, often: Sequence[str] = _OFTEN) -> None:
    """Adds a flag for each slot's kind and for every field of every kind; `--help` shows `often` alone.

    --preset, --config and kinds on the parser's command line decide the fields that help shows.
    """
    config = _shown_config(parser)
    brief = parser.add_argument_group("fields used most")
    for section in SECTIONS:
        part = getattr(config, section)
        group = brief
        kind = config.kinds.get(section, "")
        if not parser.brief:
            title = (
                f"{section} ({kind})"
                if kind
                else {"train": "counts of the run", "data": "text"}[section]
            )
            group = parser.add_argument_group(
                title, (type(part).__doc__ or "").split("\n")[0] if kind else None
            )
        if kind:
            spec = Spec(str, either(list(KINDS[section])), choices=tuple(KINDS[section]))
            add_field(
                group, section, spec, kind, section in often or not parser.brief, metavar="KIND"
            )
        for name, spec in specs(type(part)).items():
            add_field(
                group, name, spec, getattr(part, name), shown=name in often or not parser.brief
            )
    own = {name for _, name, *_ in config.every_field()}
    others = {
        name: spec
        for *_, kind in all_kinds()
        for name, spec in specs(kind).items()
        if name not in own
    }
    for (
        name,
        spec,
    ) in others.items():  # accepted, so that `Config.replace` can explain which kind has the field
        add_field(parser, name, spec, None, shown=False)


def add_protocol_flags(parser: Parser) -> None:
    """Adds --protocol, and a flag for every field of every evaluation protocol."""
    name = _early(parser, "protocol").get("protocol", "plain")
    chosen = PROTOCOLS.get(name, Plain)
    group = parser.add_argument_group(f"protocol ({name})", (chosen.__doc__ or "").split("\n")[0])
    help = f"how probabilities are made: {either(list(PROTOCOLS))} (default plain; with --help: show its flags)"
    group.add_argument("--protocol", choices=tuple(PROTOCOLS), default="plain", help=help)
    own = specs(chosen)
    every = {name: spec for kind in PROTOCOLS.values() for name, spec in specs(kind).items()}
    for name, spec in (own | every | own).items():
        add_field(group, name, spec, getattr(chosen(), name, None), shown=name in own)


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """The fields and kinds that have a flag on the command line, for `Config.replace`."""
    return {
        name.removeprefix(FIELD): value
        for name, value in vars(args).items()
        if name.startswith(FIELD)
    }


def given_protocol(args: argparse.Namespace) -> Plain:
    """The protocol that a command line chooses, with its flags' numbers. Raises JaxlmError."""
    return protocol_of(args.protocol, **changes(args))


def starting_config(config: Path | None, name: str | None) -> Config:
    """The config that flags change: of the file of --config, or else of --preset. Raises JaxlmError."""
    if config is None:
        return preset(name or "small")
    if name:
        raise JaxlmError(
            "--config starts from its file in place of a preset: leave --preset or --config out"
        )

    from jaxlm import files  # (its imports would take a fifth of the time of --help)

    with files.explained(JaxlmError, f"{config} cannot be read"):
        data = files.read_bytes(config, MOST_CONFIG_BYTES)
    try:
        return Config.from_json(data)
    except JaxlmError as error:
        raise JaxlmError(f"{config}: {error}") from None


def _field_value(kind: type, text: str) -> Any:
    """A field's value from its flag; `none` means that the mechanism is absent."""
    if kind in (int, float) and text.strip().lower() == "none":
        return None
    try:
        if kind is tuple:
            return tuple(int(part) for part in text.split(",") if part.strip())
        return kind(text)
    except ValueError:
        expected = {
            int: "a whole number",
            float: "a number",
            tuple: "whole numbers with commas between, as in 256,128",
        }
        raise argparse.ArgumentTypeError(f"expected {expected[kind]}, found {text!r}") from None


def _limits(spec: Spec) -> str:
    """The limits worth showing: those of any count are not."""
    if spec.type is int:
        low = spec.low if spec.low > 1 else -float("inf")
        high = spec.high if spec.high < LARGEST else float("inf")
        spec = replace(spec, low=low, high=high)
    if spec.type in (int, float) and spec.range != "finite":
        return spec.range
    return ""


def _shown_config(parser: Parser) -> Config:
    """The config whose fields and defaults help shows. Mistakes on the command line are passed over here."""
    found = preset("small")
    if not {"-h", "--help", "--help-all"} & {*parser.arguments}:
        return found
    given = _early(parser, "preset", "config", *KINDS)
    path = Path(given["config"]) if "config" in given else None
    with suppress(JaxlmError):
        found = starting_config(path, given.get("preset"))
    for slot in KINDS:
        with suppress(JaxlmError):
            found = found.replace(**{slot: given.get(slot, found.kinds[slot])})
    return found


def _early(parser: Parser, *names: str) -> dict[str, str]:
    """The values of some flags, read before the others are known."""
    early = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for name in names:
        early.add_argument(f"--{name}", nargs="?")
    given = vars(early.parse_known_args(parser.arguments)[0])
    return {name: value for name, value in given.items() if value is not None}
