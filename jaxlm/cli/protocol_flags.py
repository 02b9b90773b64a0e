"""--protocol, and a flag for every field of every evaluation protocol."""

import argparse
from collections.abc import Sequence

from jaxlm.cli.parsing import add_field, changes, value_of
from jaxlm.config.fields import either, specs
from jaxlm.config.protocols import PROTOCOLS, Plain, protocol_of


def add_protocol_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Adds --protocol, and a flag for every field of every protocol.

    Args:
        parser: what to add to.
        arguments: the command line, whose --protocol decides the fields that `--help` shows.
    """
    name = value_of("--protocol", arguments) or "plain"
    chosen = PROTOCOLS.get(name, Plain)
    group = parser.add_argument_group(f"protocol ({name})", (chosen.__doc__ or "").split("\n")[0])
    group.add_argument(
        "--protocol",
        choices=tuple(PROTOCOLS),
        default="plain",
        help=f"how probabilities are made: {either(list(PROTOCOLS))} (default plain; with --help: show its flags)",
    )
    taken: set[str] = set()
    for kind in (chosen, *PROTOCOLS.values()):
        for field, spec in specs(kind).items():
            if field not in taken:
                taken.add(field)
                added = add_field(group, field, spec, getattr(kind(), field))
                if kind is not chosen:  # accepted, so that `protocol_of` can explain
                    added.help = argparse.SUPPRESS


def given_protocol(args: argparse.Namespace) -> Plain:
    """The protocol that a command line chooses, with its flags' numbers. Raises JaxlmError."""
    return protocol_of(args.protocol, **changes(args))
