"""The options of surprisal, as verbs take them for flags and methods as arguments."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxlm.base.fields import checked, choice, count, flag
from jaxlm.config.protocols import Plain
from jaxlm.scoring.token_scores import Scoring

BLOCK = 1024  # sentences, or pairs of them, that are read together
UNITS = {"bits": math.log(2), "nats": 1.0}  # nats of each unit


@dataclass(frozen=True)
class SurprisalOptions:
    """How the surprisal of sentences is found.

    Attributes:
        tokenizer: What splits lines: "none" at white space, "ptb" as Penn Treebank's files are;
            None: as the text that the model was trained on.
        protocol: A name, as in "cache", or its settings, as in `Cache(cache_window=100)`; None:
            plain.
        block: Sentences that are read together.
        scoring: A scoring of `LanguageModel.scorer` or `adaptive`, continued from its state; None:
            a new `scorer`.
        where: Names a sentence, given its number, in an error.

    Raises:
        JaxlmError: A value is outside its limits.
    """

    context: str = choice(
        "sentence",
        "stream: pass the state on",
        ("sentence", "stream"),
    )
    oov: str = choice(
        "unk",
        "read unknown words as <unk>, refuse them, or give them NaN",
        ("unk", "error", "nan"),
    )
    top_k: int = count(0, "how many likely words to add in each word's place")
    unit: str = choice("bits", "of surprisal and entropy", tuple(UNITS))
    tokenizer: str | None = None
    eos: bool = flag(False, "also a row for the <eos> that ends each sentence")
    punctuation: str = choice("word", "attached to its word, or a word of its own", ("word", "own"))
    boundary: str = choice(
        "corrected",
        "include the boundary after a word made of pieces, or not (published)",
        ("corrected", "published"),
    )
    protocol: str | Plain | None = None
    block: int = count(BLOCK, "sentences that are read together", low=1)
    scoring: Scoring | None = None
    where: Callable[[int], str] = "sentence {}".format

    def __post_init__(self) -> None:
        checked(self)
