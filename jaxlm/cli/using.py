"""The verbs that use a trained model: `jaxlm evaluate`, `perplexity`, `predict`, `neighbors` and `generate`."""

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.cli.parsing import add_protocol_flags, changes, given_protocol, whole
from jaxlm.cli.tables import json_text
from jaxlm.cli.verbs import (
    DATA_DIR,
    JSON,
    MODEL,
    TOKENIZER,
    argument,
    loaded,
    pathname,
    switch,
    verb,
)
from jaxlm.config.protocols import described
from jaxlm.errors import DataError, JaxlmError
from jaxlm.terminal import is_terminal, printable, say, say_line
from jaxlm.units import comparable_text, perplexity_text

if TYPE_CHECKING:
    from jaxlm.data.tokens import Words
    from jaxlm.scoring.language_model import LanguageModel

MOST_NAMED = 10
MOST_SHOWN = 40  # unknown words, and characters of each
MOST_TEXT = 64 << 20  # bytes of a line, and characters of a text, that are held in memory
SAMPLING = (
    "words",
    "seed",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "ban",
    "no_unk",
    "stop",
)
SPLITS = ("train", "valid", "test")  # as in `data.text`, which imports NumPy
HOW_MANY = argument("-k", type=whole(1), default=10, metavar="K", help="how many (default 10)")


@verb(
    "perplexity of a trained model on a split or on a text file",
    *MODEL,
    argument("--split", choices=SPLITS, help="which split (default test)"),
    pathname("--text", "FILE", "a text file instead of a split"),
    TOKENIZER,
    argument(
        "--corpus",
        metavar="TEXT",
        help="a split of another corpus (as train's --corpus), in the run's words",
    ),
    DATA_DIR,
    JSON,
    switch("--tune", "tune the protocol's settings on valid, then read test once"),
    add_protocol_flags,
)
def evaluate(args: argparse.Namespace) -> None:
    if args.text and (given := "--corpus" if args.corpus else "--split" if args.split else ""):
        raise JaxlmError(
            f"--text is a whole text, and no split of a corpus: leave it or {given} out"
        )
    if args.tokenizer and not args.text:
        raise JaxlmError(
            "--tokenizer splits a text, and a corpus is split already: give --text, or leave it out"
        )
    protocol = given_protocol(args)
    if args.tune and (given := "--text" if args.text else "--split" if args.split else ""):
        raise JaxlmError(f"--tune chooses on valid and then reads test: leave {given} out")
    lm = loaded(args.run, args.checkpoint)
    if args.tune:
        grid = {name: values for name, values in protocol.grid.items() if name not in changes(args)}
        tuned = lm.tune(protocol, grid=grid, corpus=args.corpus, data_dir=args.data_dir)
        best = f"the best of {len(tuned.tried)} on valid: perplexity {perplexity_text(tuned.valid)}"
        say(f"{best}; test is read once, with it", file=sys.stderr if args.json else None)
        protocol = tuned.protocol
        found = tuned.test
    else:
        options = {
            "text": args.text,
            "corpus": args.corpus,
            "data_dir": args.data_dir,
            "tokenizer": args.tokenizer,
        }
        found = lm.evaluate(args.split or "test", protocol=protocol, **options)

    from jaxlm.data.corpus import unknown_text, unknown_warning

    if args.json:
        how = {"name": args.protocol, **vars(protocol)}
        say(
            json_text(
                {
                    "run": str(args.run),
                    "checkpoint": args.checkpoint,
                    "protocol": how,
                    **found._asdict(),
                }
            )
        )
    else:
        how = "" if args.protocol == "plain" else f"; protocol {described(protocol)}"
        read = f"{found.nats:.1f} nats over {found.predictions:,} predictions, {unknown_text(found.unknown)}"
        model = f"{args.checkpoint} checkpoint of {args.run}"
        say_line(
            f"{found.text}: perplexity {perplexity_text(found.perplexity)} ({read}; {model}{how})"
        )
        say_line(f"{found.text}: {comparable_text(found._asdict())}")
    warning = unknown_warning(found.unknown, found.text)
    if warning:
        say_line(warning, sys.stderr)


@verb(
    "which of two runs predicts a text better, by a bootstrap",
    *MODEL,
    pathname("other", "RUN", "the other run"),
    argument("--split", choices=SPLITS, help="which split (default test)"),
    pathname("--text", "FILE", "a text file instead of a split"),
    DATA_DIR,
    JSON,
    add_protocol_flags,
)
def compare(args: argparse.Namespace) -> None:
    if args.text and args.split:
        raise JaxlmError(
            "--text is a whole text, and no split of a corpus: leave it or --split out"
        )
    protocol = given_protocol(args)
    first, other = (loaded(run, args.checkpoint) for run in (args.run, args.other))

    from jaxlm.scoring.evaluation import compare

    found = compare(
        first,
        other,
        args.split or "test",
        text=args.text,
        data_dir=args.data_dir,
        protocol=protocol,
    )
    if args.json:
        named = {"run": str(args.run), "other": str(args.other), "checkpoint": args.checkpoint}
        named["protocol"] = {"name": args.protocol, **vars(protocol)}
        say(json_text({**named, **found._asdict()}))
        return
    better = args.other if found.high_95 < 0 else args.run if found.low_95 > 0 else None
    how = "" if args.protocol == "plain" else f"; protocol {described(protocol)}"
    say_line(
        f"{found.text}: {found.nats:.3f} nats a line of {args.run}, {found.other_nats:.3f} of {args.other}{how}"
    )
    say_line(
        f"difference {found.difference:+.3f}, 95% of bootstraps over {found.lines:,} lines from {found.low_95:+.3f} to "
        f"{found.high_95:+.3f}: {f'{better} is better' if better else 'neither is shown to be better'}"
    )


@verb(
    "perplexity of a text given here, or on standard input",
    *MODEL,
    argument("text", nargs="?", metavar="TEXT", help="default: standard input"),
    TOKENIZER,
)
def perplexity(args: argparse.Namespace) -> None:
    text = _text_in("-") if args.text is None else args.text
    lm = loaded(args.run, args.checkpoint)
    say(perplexity_text(lm.perplexity(text, tokenizer=args.tokenizer)))
    _say_unknown_in(lm, text, args.tokenizer)


@verb(
    "the most probable next words after a text",
    *MODEL,
    argument("text", metavar="TEXT", help="the words so far"),
    TOKENIZER,
    HOW_MANY,
)
def predict(args: argparse.Namespace) -> None:
    lm = loaded(args.run, args.checkpoint)
    _say_unknown_in(lm, args.text, args.tokenizer)
    for word, probability in lm.predict(args.text, args.k, tokenizer=args.tokenizer):
        say_line(f"{probability:.4f}  {word}")


@verb(
    "the words whose embeddings are nearest to a word's",
    *MODEL,
    argument("word", metavar="WORD", help="one of the model's vocabulary"),
    HOW_MANY,
)
def neighbors(args: argparse.Namespace) -> None:
    for word, cosine in loaded(args.run, args.checkpoint).neighbors(args.word, args.k):
        say_line(f"{cosine:.4f}  {word}")


@verb(
    "text that continues a prompt",
    *MODEL,
    argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="words that come before (-: standard input; default: none)",
    ),
    pathname("--prompt-file", "FILE", "take the prompt from a file"),
    argument(
        "--words", type=int, default=100, metavar="N", help="most words of a text (default 100)"
    ),
    argument("--samples", type=int, default=1, metavar="N", help="how many texts (default 1)"),
    argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="sample i depends on the seed and i alone (default 0)",
    ),
    argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="divides the logits; 0: the likeliest word",
    ),
    argument("--top-k", type=int, metavar="K", help="draw from the K likeliest words"),
    argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest words that together have probability P",
    ),
    argument(
        "--min-p",
        type=float,
        metavar="P",
        help="draw from words at least P times as probable as the likeliest",
    ),
    argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="above 1 makes earlier words less likely",
    ),
    argument(
        "--beam",
        type=int,
        metavar="K",
        help="search for the most probable text, keeping K at each word",
    ),
    argument(
        "--ban",
        action="append",
        default=[],
        metavar="WORD",
        help="a word never to draw; repeatable",
    ),
    switch("--no-unk", "never draw <unk>"),
    argument(
        "--stop",
        choices=("eos", "none"),
        default="none",
        help="end a text at its first <eos> (default none)",
    ),
    switch("--detokenize", "join clitics and punctuation to their words"),
    argument(
        "--format",
        choices=("text", "jsonl"),
        default="text",
        help="text, or each word with its nats as JSON",
    ),
)
def generate(args: argparse.Namespace) -> None:
    if args.prompt is not None and args.prompt_file is not None:
        raise JaxlmError("the prompt is given twice: leave PROMPT or --prompt-file out")
    if args.detokenize and args.format == "jsonl":
        raise JaxlmError(
            "--detokenize joins words, and --format jsonl has each by itself: leave one out"
        )
    prompt = args.prompt or ""
    if prompt == "-" or args.prompt_file is not None:
        prompt = _text_in(args.prompt_file or "-").removesuffix("\n")
    lm = loaded(args.run, args.checkpoint)
    _say_unknown_in(lm, prompt)
    options = {name: getattr(args, name) for name in SAMPLING}
    if args.samples == 1 and args.beam is None:
        texts: Iterable[Iterable[tuple[str, float]]] = [lm.stream(prompt, **options)]
    else:
        made = lm.generate(prompt, samples=args.samples, beam=args.beam, **options)
        texts = [zip(text.words, text.log_probs.tolist(), strict=True) for text in made]
    for sample, text in enumerate(texts, 1):
        if args.format == "text":
            say(end="\n" if sample > 1 else "")
            _print_text((word for word, _ in text), args.detokenize, lm.vocab.tokens)
            continue
        for place, (word, log_prob) in enumerate(text, 1):
            row = {
                "sample": sample,
                "position": place,
                "word": word,
                "log_prob": round(log_prob, 6),
            }
            say(json_text(row), flush=True)


def _print_text(words: Iterable[str], joined: bool, tokens: "Words") -> None:
    """Prints words as they come, in lines no wider than the terminal, if there is one; other tokens exactly."""
    from jaxlm.scoring.tokenizers import detokenized

    terminal = is_terminal(sys.stdout)
    is_words = tokens.kind == "words"
    end = "\n"
    pieces = detokenized(words) if joined and is_words else tokens.pieces(words)
    if is_words and terminal:
        pieces = wrapped(pieces, shutil.get_terminal_size().columns, sys.stdout.encoding)
    for piece in filter(None, pieces):
        say(piece, end="", flush=terminal, exact=not (terminal or is_words))
        end = "" if piece.endswith("\n") else "\n"
    say(end=end)


def wrapped(pieces: Iterable[str], width: int, encoding: str | None = None) -> Iterator[str]:
    """Pieces of text; the space before a piece that would exceed the width, in columns, becomes a newline."""
    from rich.cells import cell_len

    column = 0
    for piece in pieces:
        space = piece.startswith(" ")
        word = printable(piece.lstrip(" "), keep_newlines=True, encoding=encoding)
        if space and column + 1 + cell_len(word) > width:
            column = 0
            space = False
            yield "\n"
        column = 0 if piece == "\n" else column + space + cell_len(word)
        yield " " * space + word


def say_unknown(
    unknown: Counter[str], total: int, what: str = "words are", whose: str = ""
) -> None:
    """Says on standard error how many `words are` outside the vocabulary, and the most frequent; a warning if many."""
    from jaxlm.data.corpus import MOST_UNKNOWN

    count = unknown.total()
    if count:
        kind = "warning" if count > MOST_UNKNOWN * total else "note"
        named = ", ".join(word[:MOST_SHOWN] for word, _ in unknown.most_common(MOST_NAMED))
        said = f"{count:,} of {total:,} {what} outside the vocabulary{whose}, read as <unk> ({count / total:.1%})"
        say_line(f"{kind}: {said}: {named}", sys.stderr)


def _say_unknown_in(lm: "LanguageModel", text: str, tokenizer: str | None = None) -> None:
    if lm.vocab.unknown_id >= 0:  # else an unknown token is an error
        tokens = lm.tokens(text, tokenizer)
        name = lm.vocab.tokens.unknown if lm.vocab.kind != "words" else None
        unknown = Counter(token for token in tokens if token not in lm.vocab.ids or token == name)
        say_unknown(unknown, len(tokens), f"{lm.vocab.kind} are")


def _text_in(path: str | Path) -> str:
    """The text in a file, or on standard input ("-"), with LF at the ends of lines.

    Raises DataError as `lines_of`, and where there are more than `MOST_TEXT` characters: a pipe may never end.
    """
    from jaxlm.data.tokens import normalize_newlines
    from jaxlm.scoring.stimuli import lines_of, source

    parts = []
    size = 0
    for lines in lines_of(path, MOST_TEXT):
        parts.append("".join(lines))
        size = size + len(parts[-1])
        if size > MOST_TEXT:
            how = "give less, or a file to `jaxlm evaluate RUN --text FILE`"
            raise DataError(f"{source(path)} has more than {MOST_TEXT:,} characters: {how}")
    return normalize_newlines("".join(parts))
