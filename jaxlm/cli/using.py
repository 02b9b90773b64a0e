"""The verbs that ask a model: evaluate, compare, perplexity, predict, neighbors and generate."""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import chain, combinations, compress
from pathlib import Path

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.base.fields import specs
from jaxlm.base.terminal import is_terminal, say, say_line
from jaxlm.base.units import (
    MOST_UNKNOWN,
    comparable_text,
    measure_name,
    perplexity_text,
    result_text,
)
from jaxlm.cli.arguments import (
    BETWEEN_GROUPS,
    CHECKPOINT,
    DATA_DIR,
    JSON,
    MODEL,
    TOKENIZER,
    argument,
    choice,
    command,
    fields_of,
    pathname,
    switch,
    two_groups,
    whole,
)
from jaxlm.cli.config_flags import add_protocol_flags, changes, given_protocol
from jaxlm.cli.opening import check_run, open_model
from jaxlm.cli.tables import json_text
from jaxlm.config.protocols import Plain, described
from jaxlm.data.corpus import unknown_text, unknown_warning
from jaxlm.data.text import SPLITS, lines_of, source
from jaxlm.data.tokens import EOS, normalize_newlines
from jaxlm.runs.status import status
from jaxlm.scoring import comparison as comparing
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.sampling import Sampling
from jaxlm.scoring.tokenizers import detokenized

MOST_NAMED = 10  # unknown words that a note names
MOST_SHOWN = 40  # characters of each
MOST_TEXT = 64 << 20  # bytes of a line, and characters of a text, that are held in memory
# What `LanguageModel.generate` takes, each a flag of this name.
_GENERATED = (*specs(Sampling), "words", "tokens", "seed", "stop", "ban", "no_unk")
_TEXT = (
    choice("--split", SPLITS, "which split (default test)"),
    pathname("--text", "FILE", "a text file instead of a split"),
)
_HOW_MANY = argument("-k", "K", "how many (default 10)", type=whole(1), default=10)


@command(
    *MODEL,
    *_TEXT,
    TOKENIZER,
    argument(
        "--corpus", "TEXT", "a split of another corpus (as train's --corpus), in the run's words"
    ),
    DATA_DIR,
    JSON,
    switch("--tune", "tune the protocol's settings on valid, then read test once"),
    add_protocol_flags,
)
def evaluate(args: argparse.Namespace) -> None:
    """Evaluates a model on a split or a text."""
    _check_no_split_beside_text(args)
    if args.tokenizer and not args.text:
        raise JaxlmError(
            "--tokenizer splits a text, and a corpus is split already: give --text, or leave it out"
        )
    if args.tune and (args.text or args.split):
        flag = "--text" if args.text else "--split"
        raise JaxlmError(f"--tune chooses on valid and then reads test: leave {flag} out")
    protocol = given_protocol(args)
    lm = open_model(args.run, args.checkpoint, args.data_dir)
    valid = None
    if args.tune:
        fixed = changes(args)
        grid = {name: values for name, values in protocol.grid.items() if name not in fixed}
        tuned = lm.tune(protocol, grid=grid, corpus=args.corpus)
        say(
            f"the best of {len(tuned.tried)} on valid: perplexity {perplexity_text(tuned.valid)}; "
            "test is read once, with it",
            file=sys.stderr if args.json else None,
        )
        protocol = tuned.protocol
        valid = tuned.valid
        result = tuned.test
    else:
        result = lm.evaluate(
            args.split or "test",
            text=args.text,
            corpus=args.corpus,
            protocol=protocol,
            tokenizer=args.tokenizer,
        )
    if args.json:
        tree = {
            "run": str(args.run),
            "checkpoint": args.checkpoint,
            "protocol": {"name": args.protocol, **vars(protocol)},
            "tuned_valid_perplexity": valid,
            **result._asdict(),
        }
        say(json_text(tree))
    else:
        shown = result_text(result.perplexity, lm.vocab.kind)
        if measure_name(lm.vocab.kind) == "perplexity":
            shown = f"perplexity {shown}"
        say_line(
            f"{result.text}: {shown} "
            f"({result.nats:.1f} nats over {result.predictions:,} predictions, "
            f"{unknown_text(result.unknown)}; "
            f"{args.checkpoint} checkpoint of {args.run}{_protocol_text(protocol)})"
        )
        say_line(f"{result.text}: {comparable_text(result._asdict())}")
    warning = unknown_warning(result.unknown, result.text)
    if warning:
        say_line(warning, sys.stderr)


@command(
    two_groups("runs", "RUN", "two runs, or two groups of seeds with -- between them"),
    CHECKPOINT,
    *_TEXT,
    DATA_DIR,
    JSON,
    switch("--unfinished", "also runs that were stopped before their end, or diverged"),
    add_protocol_flags,
)
def compare(args: argparse.Namespace) -> None:
    """Compares two models, or two groups of seeds, on one text."""
    _check_no_split_beside_text(args)
    runs, others = _groups(args.runs)
    all_runs = [*runs, *others]
    statuses = _checked_statuses(all_runs, args.unfinished)
    protocol = given_protocol(args)
    comparison = comparing.compare(
        [open_model(run, args.checkpoint, args.data_dir) for run in runs],
        [open_model(run, args.checkpoint, args.data_dir) for run in others],
        args.split or "test",
        text=args.text,
        protocol=protocol,
    )
    for run, other_run in combinations(all_runs, 2):
        if run.samefile(other_run):
            say_line(f"note: {run} and {other_run} are one run", sys.stderr)
    if args.json:
        tree = {
            "runs": list(map(str, runs)),
            "others": list(map(str, others)),
            "checkpoint": args.checkpoint,
            "protocol": {"name": args.protocol, **vars(protocol)},
            "status": statuses,
            **comparison._asdict(),
        }
        say(json_text(tree))
        return
    for run, state in statuses.items():
        if state != "finished":
            say_line(f"note: {run} is {state}")
    name = _group_name(runs)
    other_name = _group_name(others)
    verdict = "neither is shown to be better"
    if comparison.high_95 < 0:
        verdict = f"{other_name} is better"
    elif comparison.low_95 > 0:
        verdict = f"{name} is better"
    seeds = ""
    if len(runs) > 1 or len(others) > 1:
        counts = "pairs of" if comparison.seeds_paired else f"{len(runs)} and {len(others)}"
        seeds = f" and {counts} seeds"
    say_line(
        f"{comparison.text}: {comparison.nats:.3f} nats a line of {name}, "
        f"{comparison.other_nats:.3f} of {other_name}{_protocol_text(protocol)}"
    )
    say_line(
        f"difference {comparison.difference:+.3f}, 95% of bootstraps over {comparison.lines:,} "
        f"lines{seeds} from {comparison.low_95:+.3f} to {comparison.high_95:+.3f}: {verdict}"
    )


def _groups(runs: list[Path]) -> tuple[list[Path], list[Path]]:
    """The two groups of a command line. Raises JaxlmError where there are no two."""
    if runs.count(BETWEEN_GROUPS) == 1:
        place = runs.index(BETWEEN_GROUPS)
        if 0 < place < len(runs) - 1:
            return runs[:place], runs[place + 1 :]
    elif len(runs) == 2:
        return runs[:1], runs[1:]
    raise JaxlmError(
        "compare takes two runs, or two groups of runs with -- between them, as in "
        "jaxlm compare runs/a-* -- runs/b-*"
    )


def _group_name(runs: list[Path]) -> str:
    """The name of the first run, and how many more there are."""
    if len(runs) == 1:
        return str(runs[0])
    return f"{runs[0]} and {len(runs) - 1} more"


def _checked_statuses(runs: list[Path], unfinished: bool) -> dict[str, str]:
    """How far each run has come, by its path, in words.

    Args:
        runs: The runs' directories.
        unfinished: Whether runs that were stopped or diverged are welcome.

    Raises:
        JaxlmError: A path is no run, or the run is unfinished.
    """
    for run in runs:
        check_run(run)
    statuses = {str(run): status(run) for run in runs}
    problems = []
    for run, run_status in statuses.items():
        if run_status.state in ("stopped", "diverged"):
            problems.append(f"{run} is {run_status}")
    if problems and not unfinished:
        raise JaxlmError(
            f"{' and '.join(problems)}: resume it with jaxlm train --run-dir RUN --resume, or "
            "compare it as it is with --unfinished"
        )
    return {run: str(run_status) for run, run_status in statuses.items()}


@command(
    *MODEL,
    argument("text", "TEXT", "default: standard input", nargs="?"),
    TOKENIZER,
)
def perplexity(args: argparse.Namespace) -> None:
    """Prints the perplexity of a text."""
    text = _text_in("-") if args.text is None else args.text
    lm = open_model(args.run, args.checkpoint)
    value = lm.perplexity(text, tokenizer=args.tokenizer)
    from_eos = lm.perplexity(text, tokenizer=args.tokenizer, from_eos=True)
    say(perplexity_text(value))
    count = len(lm.tokens(text, args.tokenizer))
    kind = lm.vocab.kind
    say_line(
        f"{(count - 1) * math.log(value):.2f} nats over {count - 1:,} {kind}, all but the first; "
        f"{perplexity_text(from_eos)}: {count * math.log(from_eos):.2f} nats over {count:,}, the "
        f"first predicted from {EOS}, as surprisal has it",
        sys.stderr,
    )
    _say_unknown_in(lm, text, args.tokenizer)


@command(
    *MODEL,
    argument("text", "TEXT", "the words so far"),
    TOKENIZER,
    _HOW_MANY,
)
def predict(args: argparse.Namespace) -> None:
    """Prints the most probable next words."""
    lm = open_model(args.run, args.checkpoint)
    _say_unknown_in(lm, args.text, args.tokenizer)
    for word, probability in lm.predict(args.text, args.k, tokenizer=args.tokenizer):
        say_line(f"{probability:.4f}  {word}")


@command(
    *MODEL,
    argument("word", "WORD", "one of the model's vocabulary"),
    _HOW_MANY,
)
def neighbors(args: argparse.Namespace) -> None:
    """Prints the words nearest to a word."""
    for word, cosine in open_model(args.run, args.checkpoint).neighbors(args.word, args.k):
        say_line(f"{cosine:.4f}  {word}")


@command(
    *MODEL,
    argument(
        "prompt", "PROMPT", "words that come before (-: standard input; default: none)", nargs="?"
    ),
    pathname("--prompt-file", "FILE", "take the prompt from a file"),
    argument("--words", "N", "most words of a text", type=int),
    argument("--tokens", "N", "most tokens, in place of --words (default 100)", type=int),
    argument("--samples", "N", "how many texts (default 1)", type=int, default=1),
    argument(
        "--seed", "N", "sample i depends on the seed and i alone (default 0)", type=int, default=0
    ),
    fields_of(Sampling, *specs(Sampling)),
    argument("--beam", "K", "search for the most probable text, keeping K at each word", type=int),
    argument("--ban", "WORD", "a word never to draw; repeatable", action="append", default=[]),
    switch("--no-unk", "never draw <unk>"),
    choice(
        "--stop", ("eos", "none"), "end a text at its first <eos> (default none)", default="none"
    ),
    switch("--detokenize", "join clitics and punctuation to their words"),
    choice(
        "--format", ("text", "jsonl"), "text, or each word with its nats as JSON", default="text"
    ),
)
def generate(args: argparse.Namespace) -> None:
    """Generates texts that continue a prompt."""
    if args.prompt is not None and args.prompt_file is not None:
        raise JaxlmError("the prompt is given twice: leave PROMPT or --prompt-file out")
    if args.detokenize and args.format == "jsonl":
        raise JaxlmError(
            "--detokenize joins words, and --format jsonl has each by itself: leave one out"
        )
    prompt = args.prompt or ""
    if prompt == "-" or args.prompt_file is not None:
        prompt = _text_in(args.prompt_file or "-").removesuffix("\n")
    lm = open_model(args.run, args.checkpoint)
    _say_unknown_in(lm, prompt)
    options = {name: getattr(args, name) for name in _GENERATED}
    if args.words is None and args.tokens is None:
        options["tokens"] = 100
    texts: list[Iterable[tuple[str, float]]]
    if args.samples == 1 and args.beam is None:
        texts = [lm.stream(prompt, **options)]
    else:
        samples = lm.generate(prompt, samples=args.samples, beam=args.beam, **options)
        texts = [zip(text.words, text.log_probs.tolist(), strict=True) for text in samples]
    for number, text in enumerate(texts, 1):
        if args.format == "jsonl":
            _print_rows(number, text)
            continue
        if number > 1:
            say()
        words = chain(lm.tokens(prompt), (word for word, _ in text))
        if args.detokenize and lm.vocab.kind == "words":
            pieces = detokenized(words)
        else:
            pieces = lm.vocab.tokens.pieces(words)
        _print_text(pieces, exact=lm.vocab.kind != "words")


def say_unknown(
    unknown: Counter[str],
    total: int,
    subject: str = "words are",
    of_run: str = "",
) -> None:
    """Says on standard error how many tokens are outside the vocabulary; many are a warning.

    Args:
        unknown: How often each unknown token stands in the text.
        total: How many tokens the text has.
        subject: What the tokens are called, with its verb.
        of_run: " of RUN", where there are several vocabularies.
    """
    count = unknown.total()
    if count:
        kind = "warning" if count > MOST_UNKNOWN * total else "note"
        frequent = ", ".join(word[:MOST_SHOWN] for word, _ in unknown.most_common(MOST_NAMED))
        say_line(
            f"{kind}: {count:,} of {total:,} {subject} outside the vocabulary{of_run}, "
            f"read as <unk> ({count / total:.1%}): {frequent}",
            sys.stderr,
        )


def _check_no_split_beside_text(args: argparse.Namespace) -> None:
    """Raises JaxlmError where a text is given beside a split or a corpus."""
    for name in ("split", "corpus"):
        if args.text and getattr(args, name, None):
            raise JaxlmError(
                f"--text is a whole text, and no split of a corpus: leave it or --{name} out"
            )


def _protocol_text(protocol: Plain) -> str:
    """The protocol, unless it is plain, as the last words of a line."""
    return "" if type(protocol) is Plain else f"; protocol {described(protocol)}"


def _print_rows(sample: int, text: Iterable[tuple[str, float]]) -> None:
    """Prints each (word, log probability) of a text as a line of JSON."""
    for position, (word, log_prob) in enumerate(text, 1):
        row = {
            "sample": sample,
            "position": position,
            "word": word,
            "log_prob": round(log_prob, 6),
        }
        say(json_text(row), flush=True)


def _print_text(pieces: Iterable[str], *, exact: bool) -> None:
    """Prints pieces of text as they come.

    Outside a terminal the control characters of an `exact` text, of characters, bytes or subwords,
    are kept.
    """
    terminal = is_terminal(sys.stdout)
    end = "\n"
    for piece in pieces:
        if piece:
            say(piece, end="", flush=terminal, exact=exact and not terminal)
            end = "" if piece.endswith("\n") else "\n"
    say(end=end)


def _say_unknown_in(
    lm: LanguageModel,
    text: str,
    tokenizer: str | None = None,
) -> None:
    """Says on standard error which tokens of a text the model's vocabulary lacks."""
    if lm.vocab.unknown_id < 0:  # An unknown token is an error.
        return
    tokens = lm.tokens(text, tokenizer)
    unknown = Counter(compress(tokens, lm.unknown(tokens)))
    say_unknown(unknown, len(tokens), f"{lm.vocab.kind} are")


def _text_in(path: str | Path) -> str:
    """The text in a file, or on standard input ("-"), with LF at the ends of lines.

    Raises DataError as `lines_of`, and where there are more than `MOST_TEXT` characters: a pipe may
    never end.
    """
    text = ""
    for lines in lines_of(path, MOST_TEXT):
        text += "".join(lines)
        if len(text) > MOST_TEXT:
            raise DataError(
                f"{source(path)} has more than {MOST_TEXT:,} characters: "
                "give less, or a file to `jaxlm evaluate RUN --text FILE`"
            )
    return normalize_newlines(text)
