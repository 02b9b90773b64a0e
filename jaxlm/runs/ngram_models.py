"""Makes an n-gram model of a corpus or an ARPA file, and keeps it in a directory."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxlm.base.errors import OutOfMemory
from jaxlm.base.fields import checked_value
from jaxlm.base.units import perplexity, result_text
from jaxlm.data.corpora import UNKNOWN
from jaxlm.data.corpus import Corpus
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.ngrams import arpa, folder, kneser_ney
from jaxlm.ngrams.folder import Ngrams
from jaxlm.runs import ram
from jaxlm.scoring.language_model import NgramModel

MOST_ORDER = 12
MOST_BASELINE_TOKENS = 4_000_000
_OWN_NAMES = {arpa.END: EOS, "<UNK>": UNK}  # of what ARPA files name so


def ngram(
    corpus: Corpus,
    order: int = 5,
    out: str | Path | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> NgramModel:
    """A Kneser-Ney model of a corpus's train split (`kneser_ney.estimate`).

    A sentence is a line: contexts begin anew after each.

    Args:
        corpus: The corpus.
        order: The most tokens of an n-gram.
        out: A new directory that keeps the model; None keeps nothing.
        say: Called with sentences for the user: how much memory is needed, which discounts failed.

    Raises:
        JaxlmError: The order is not 1 to 12, there is not enough memory, or `out` cannot be made.
    """
    checked_value("order", order, int, low=1, high=MOST_ORDER)
    train = np.asarray(corpus.train)
    needed = kneser_ney.memory_needed(len(train), order, len(corpus.vocab))
    say(f"{len(train):,} tokens to order {order}: at most {needed / 1e9:.1f} GB of memory")
    ram.check(needed, "this n-gram model", "take a lower --order or less text")
    end = corpus.vocab.newline_id
    tables = kneser_ney.estimate(
        train, len(corpus.vocab), order, end if end >= 0 else None, warn=say
    )
    source = {**corpus.identity, "spec": corpus.spec}
    return _saved_in(out, Ngrams(tables, corpus.vocab, source, dict(corpus.options)))


def baseline(corpus: Corpus, order: int) -> float | None:
    """The perplexity of test under an n-gram model of train.

    Args:
        corpus: The corpus.
        order: The most tokens of an n-gram; 0 for none.

    Returns:
        The perplexity; None without an order, where the text is too long to take seconds, or where
            there is not enough memory: a run that has ended does not fail for it.
    """
    if order == 0 or len(corpus.train) > MOST_BASELINE_TOKENS:
        return None
    try:
        tables = ngram(corpus, order).ngram
    except OutOfMemory:
        return None
    # NumPy alone: a model of its own for each run would be compiled for each.
    nats = -tables.log_probabilities(np.asarray(corpus.test))[1:]
    return perplexity(float(nats.sum()), len(nats))


def baseline_text(corpus: Corpus, order: int) -> str:
    """What `baseline` found, as a line about the test split; empty where it found nothing."""
    perplexity = baseline(corpus, order)
    if perplexity is None:
        return ""
    return f"{corpus.name} test, {order}-gram model: {result_text(perplexity, corpus.vocab.kind)}"


def import_arpa(file: str | Path, out: str | Path | None = None) -> NgramModel:
    """An n-gram model of an ARPA file, whose `</s>` becomes `<eos>`, and `<UNK>` `<unk>`.

    Args:
        file: The file.
        out: A new directory that keeps the model; None keeps nothing.

    Raises:
        DataError: The file is no whole ARPA file, or `out` cannot be made.
    """
    tables, names = arpa.read(file)
    vocab = Vocab(tuple(_OWN_NAMES.get(name, name) for name in names))
    path = Path(file).resolve()
    with path.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    source = {
        "name": f"imported:{path.name}",
        "sha256": sha256,
        "vocab_sha256": vocab.sha256,
        "spec": UNKNOWN,
    }
    return _saved_in(out, Ngrams(tables, vocab, source, {}))


def _saved_in(out: str | Path | None, ngrams: Ngrams) -> NgramModel:
    """The model of some n-grams, which are saved in a new directory if one is named."""
    if out is not None:
        folder.save(out, ngrams)
    return NgramModel.of(ngrams)
