"""Flags of the config, one for every field of every kind. Help shows those of the kinds chosen."""

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxlm.base import files
from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import Spec, either, setting_text, specs
from jaxlm.cli.arguments import LARGEST, Parser, argument, pathname, suggest
from jaxlm.config.config import KINDS, PRESETS, SECTIONS, Config, preset
from jaxlm.config.protocols import PROTOCOLS, Plain, protocol_of

MOST_CONFIG_BYTES = 1 << 20
_FIELD = "field:"  # begins the name in the namespace under which a field's value is parsed
_OFTEN = (  # what `train --help` shows
    "model",
    "embedding_size",
    "hidden_sizes",
    "optimizer",
    "learning_rate",
    "batch_size",
    "epochs",
    "seed",
    "corpus",
    "tokens",
)
_TITLES = {"train": "counts of the run", "data": "text"}  # of the sections that have one kind
_METAVARS = {int: "N", float: "X", str: "TEXT", tuple: "N,N"}
_EXPECTED = {
    int: "a whole number",
    float: "a number",
    tuple: "numbers with commas between, as in 256,128",
}
PRESET_NAMES = textwrap.fill(
    f"presets: {', '.join(PRESETS)}", 78, subsequent_indent="  ", break_on_hyphens=False
)
START = (
    argument(
        "--preset",
        "NAME",
        "the recipe to start from, see below (default small)",
        values=list(PRESETS),
    ),
    pathname("--config", "FILE", "start from a config.json instead"),
)


def add_field(
    group: Any,
    name: str,
    spec: Spec,
    default: Any,
    *,
    shown: bool = True,
    metavar: str = "",
) -> None:
    """Adds the flag of a field; its help names the unit, the limits and the default.

    Args:
        group: A parser, or a group of its arguments.
        name: The field.
        spec: Its declaration.
        default: The value that help calls the default.
        shown: Whether help shows the flag.
        metavar: How help calls the value; by default its choices or its type.
    """
    help = argparse.SUPPRESS
    if shown:
        details = (spec.unit, _limits(spec), f"default {setting_text(default)}")
        help = f"{spec.help} ({'; '.join(filter(None, details))})".replace("%", "%%")
    flag = "--" + name.rstrip("_").replace("_", "-")
    add = partial(
        group.add_argument, flag, dest=_FIELD + name, default=argparse.SUPPRESS, help=help
    )
    if spec.type is bool:
        add(action=argparse.BooleanOptionalAction)
        return
    if spec.choices and not metavar:
        metavar = f"{{{','.join(spec.choices)}}}"
    elif not metavar:
        metavar = _METAVARS[spec.type] + ("|none" if spec.optional else "")
    suggest(add(type=partial(_field_value, spec), metavar=metavar), spec.choices)


def add_config_flags(parser: Parser, often: Sequence[str] = _OFTEN) -> None:
    """Adds a flag for each slot's kind and for every field of every kind.

    --preset, --config and kinds on the parser's command line decide the fields that help shows.

    Args:
        parser: Where the flags are added.
        often: The fields that `--help` shows; `--help-all` shows all.
    """
    config = _shown_config(parser)
    brief = parser.add_argument_group("fields used most")
    for section, kinds in SECTIONS.items():
        settings = getattr(config, section)
        kind = config.kinds.get(section)
        if parser.brief:
            group = brief
        elif kind:
            summary = (type(settings).__doc__ or "").split("\n")[0]
            group = parser.add_argument_group(f"{section} ({kind})", summary)
        else:
            group = parser.add_argument_group(_TITLES[section])
        if kind:
            spec = Spec(str, either(list(kinds)), choices=tuple(kinds))
            shown = section in often or not parser.brief
            add_field(group, section, spec, kind, shown=shown, metavar="KIND")
        fields = specs(type(settings))
        for name, spec in _with_fields_of_others(fields, kinds).items():
            shown = name in fields and (name in often or not parser.brief)
            add_field(group, name, spec, getattr(settings, name, None), shown=shown)


def add_protocol_flags(parser: Parser) -> None:
    """Adds --protocol, and a flag for every field of every evaluation protocol."""
    protocol = _early(parser, "protocol").get("protocol", "plain")
    chosen = PROTOCOLS.get(protocol, Plain)
    group = parser.add_argument_group(
        f"protocol ({protocol})", (chosen.__doc__ or "").split("\n")[0]
    )
    kinds = either(list(PROTOCOLS))
    help = f"how probabilities are made: {kinds} (default plain; with --help: show its flags)"
    group.add_argument("--protocol", choices=tuple(PROTOCOLS), default="plain", help=help)
    fields = specs(chosen)
    for name, spec in _with_fields_of_others(fields, PROTOCOLS).items():
        add_field(group, name, spec, getattr(chosen(), name, None), shown=name in fields)


def _with_fields_of_others(fields: dict[str, Spec], kinds: Mapping[str, type]) -> dict[str, Spec]:
    """The fields of the chosen kind, and then those of other kinds.

    A flag of another kind is parsed, so that an error can name the kind that has it.
    """
    fields_of_all = dict(fields)
    for kind in kinds.values():
        fields_of_all = specs(kind) | fields_of_all
    return fields | fields_of_all


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """The fields and kinds that have a flag on the command line, for `Config.replace`."""
    values = vars(args).items()
    return {name.removeprefix(_FIELD): value for name, value in values if name.startswith(_FIELD)}


def given_protocol(args: argparse.Namespace) -> Plain:
    """The protocol that a command line chooses, with its flags' numbers. Raises JaxlmError."""
    return protocol_of(args.protocol, **changes(args))


def starting_config(config: Path | None, name: str | None) -> Config:
    """The config that flags change.

    Args:
        config: The file of --config.
        name: The preset of --preset; `small` where neither is given.

    Returns:
        The config.

    Raises:
        JaxlmError: Both are given, there is no such preset, or the file is no config.
    """
    if config is None:
        return preset(name or "small")
    if name:
        raise JaxlmError(
            "--config starts from its file in place of a preset: leave --preset or --config out"
        )
    with files.explained(JaxlmError, f"{config} cannot be read"):
        text = files.read_bytes(config, MOST_CONFIG_BYTES)
    try:
        return Config.from_json(text)
    except JaxlmError as error:
        raise JaxlmError(f"{config}: {error}") from None


def _field_value(spec: Spec, text: str) -> Any:
    """A field's value from its flag; `none` means that the mechanism is absent."""
    if spec.type in (int, float) and text.strip().lower() == "none":
        return None
    try:
        if spec.type is tuple:
            return tuple(spec.items(item) for item in text.split(",") if item.strip())
        return spec.type(text)
    except ValueError:
        expected = _EXPECTED[spec.type]
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}") from None


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
    """The config whose fields and defaults help shows; mistakes on the command line are ignored."""
    config = preset("small")
    if {"-h", "--help", "--help-all"}.isdisjoint(parser.arguments):
        return config
    flags = _early(parser, "preset", "config", *KINDS)
    path = Path(flags["config"]) if "config" in flags else None
    with suppress(JaxlmError):
        config = starting_config(path, flags.get("preset"))
    for slot in KINDS:
        with suppress(JaxlmError):
            config = config.replace(**{slot: flags.get(slot, config.kinds[slot])})
    return config


def _early(parser: Parser, *names: str) -> dict[str, str]:
    """The values of some flags, read before the others are known."""
    early = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for name in names:
        early.add_argument(f"--{name}", nargs="?")
    parsed, _ = early.parse_known_args(parser.arguments)
    return {name: value for name, value in vars(parsed).items() if value is not None}
