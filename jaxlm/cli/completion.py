"""Completion in the shell: argcomplete runs `jaxlm` with variables of its own. Without them nothing is loaded."""

import argparse
import os


def words() -> list[str]:
    """The words that the shell completes, so that the verb among them gets its arguments; none of a usual process."""
    line = os.environ.get("COMP_LINE", "") if "_ARGCOMPLETE" in os.environ else ""
    return [*line.split(), "--help-all"] if line else []


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers the shell and ends the process, where it was the shell that started it."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
