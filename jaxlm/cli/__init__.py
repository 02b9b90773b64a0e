"""The command line: arguments and exit codes (`EXIT_CODES` in `ending.py`) only.

A verb is one function under `@command`, in a file of this folder, and a row in `verbs.py`, which
names it (`perplexity` in `using.py` is an example). It returns an exit code or None, raises
JaxlmError for a mistake, and prints by `terminal.say` alone. `ending.py` turns exceptions into exit
codes.
"""

import argparse
import difflib
import gc
import os
import sys
from collections.abc import Mapping, Sequence

from jaxlm.base.terminal import say
from jaxlm.cli.arguments import Parser
from jaxlm.cli.ending import EXIT_CODES, SIGNALLED, UNPARSED, check_limits, exit_code, fail
from jaxlm.cli.verbs import VERBS, Verb

TASKS = {  # by task, a command
    "try a model": 'jaxlm predict english "the old man"',
    "train one": "jaxlm train",
    "on your own text": "jaxlm train --corpus novel.txt",
    "resume a stopped run": "jaxlm train --resume",
    "search hyperparameters": "jaxlm sweep --set learning_rate=0.5,1,2",
    "evaluate": "jaxlm evaluate RUN",
    "predict the next word": 'jaxlm predict RUN "the company said"',
    "surprisal of every word": "jaxlm surprisal RUN stimuli.txt",
    "generate text": 'jaxlm generate RUN "the company"',
    "show what a run holds": "jaxlm info RUN",
    "a page of its curves": "jaxlm report RUN",
    "load others' models": "jaxlm import model.pt --vocab vocab.txt RUN",
}
# JAX's settings that change a run's numbers or the types of its arrays. Commands use JAX's
# defaults.
_UNSET = (
    "ENABLE_X64",
    "DEFAULT_PRNG_IMPL",
    "THREEFRY_PARTITIONABLE",
    "NUMPY_DTYPE_PROMOTION",
    "NUMPY_RANK_PROMOTION",
)
# Allocations between two collections of garbage: with Python's own 700, they take 0.1 s while JAX
# is imported.
_GARBAGE_THRESHOLD = 50_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `jaxlm VERB ...`.

    Args:
        arguments: What follows `jaxlm`; the process's own arguments by default.

    Returns:
        The exit code.

    Raises:
        SystemExit: Help was asked for, or the arguments do not parse.
    """
    if "_ARGCOMPLETE" in os.environ:
        _complete(os.environ.get("COMP_LINE", "").split()[1:])
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ("",)
    if name in VERBS:
        return _run(VERBS[name], rest)
    return exit_code(lambda: _without_verb(name))


def _without_verb(name: str) -> int:
    """Answers a command line that begins with no verb."""
    if not name:
        say(
            "jaxlm trains and uses recurrent language models. RUN is the directory of a run;\n"
            "english is one that comes with jaxlm.\n\n"
            f"{_table(TASKS)}\n\n"
            "All verbs: jaxlm --help    Flags: jaxlm VERB --help    All flags: --help-all"
        )
    elif name in ("-h", "--help", "--help-all"):
        say(
            "usage: jaxlm VERB ...    (jaxlm VERB --help explains one; jaxlm alone: by task)\n"
            f"{_table({verb.name: verb.help for verb in VERBS.values()})}\n\n{EXIT_CODES}"
        )
    elif name == "--version":
        from importlib.metadata import version

        say(f"jaxlm {version('jaxlm')}")
    else:
        nearest = difflib.get_close_matches(name, VERBS, 1)
        guess = f"; did you mean {nearest[0]}?" if nearest else ""
        return fail(f"there is no verb {name!r}{guess} (see jaxlm --help)", UNPARSED)
    return 0


def _table(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())


def _run(verb: Verb, arguments: Sequence[str]) -> int:
    """Parses the arguments, acts, and turns exceptions into an exit code."""

    def act() -> int | None:
        check_limits()
        _configure_jax()
        args: argparse.Namespace = verb.parser(arguments).parse_args(arguments)
        return args.action(args)

    code = exit_code(act)
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        if 0 < code < SIGNALLED:
            # A usual exit would wait for the other processes, and they for this one.
            os._exit(code)
        # A process that left before the others would count as dead and end them.
        jax.distributed.shutdown()
    return code


def _configure_jax() -> None:
    """Sets what JAX reads when it is imported.

    Programs that take 0.1 s to compile are kept in the user's cache. XLA logs alarms about slow
    compilation as errors, so its log has fatal ones alone; any error of XLA is an exception too.
    """
    from jaxlm.data.cache import compilation_cache

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compilation_cache()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in _UNSET:
        os.environ.pop(f"JAX_{name}", None)
    gc.set_threshold(_GARBAGE_THRESHOLD)


def _complete(words: Sequence[str]) -> None:
    """Completes the words after `jaxlm` for the shell that started this process, and ends it."""
    import argcomplete

    parser = Parser([*words, "--help-all"])  # All fields of the kinds on the line are completed.
    parser.add_argument("verb", choices=VERBS)
    if words and words[0] in VERBS:
        VERBS[words[0]].command().add_to(parser)
    argcomplete.autocomplete(parser)
