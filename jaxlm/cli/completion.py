"""Completion in the shell: argcomplete runs `jaxlm` with variables of its own. Without them nothing is loaded."""

import os

from jaxlm.cli.parsing import Parser
from jaxlm.cli.verbs import VERBS


def complete() -> None:
    """Answers the shell and ends the process, if the shell started it."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    line = [*os.environ.get("COMP_LINE", "").split(), "--help-all"]  # so that fields follow the kinds on the line
    parser = Parser(prog="jaxlm")
    verbs = parser.add_subparsers()
    for one in VERBS.values():
        added = verbs.add_parser(one.name, help=one.help, arguments=line)
        if one.name in line:
            one.add_arguments(added)
    argcomplete.autocomplete(parser)
