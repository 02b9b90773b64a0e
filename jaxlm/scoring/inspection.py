"""What a network has learnt: the states of its layers, and words that lie near each other."""

import jax
import numpy as np

from jaxlm.base.errors import DataError
from jaxlm.base.fields import checked_value
from jaxlm.scoring.model import Model, SentenceReader
from jaxlm.scoring.options import SurprisalOptions
from jaxlm.scoring.reading import SEGMENT, carries
from jaxlm.scoring.sentences import Sentence


def states(
    model: Model,
    words: Sentence,
    *,
    tokenizer: str | None = None,
    where: str = "the sentence",
) -> dict[str, np.ndarray]:
    """The state of every layer after each of N words of a sentence; `<eos>` is read first.

    Args:
        model: The model.
        words: A line, or a list of words.
        tokenizer: Name of the tokenizer.
        where: Names the sentence in an error.

    Returns:
        Arrays [N, ...] by name, as in `lstm.0.c`.

    Raises:
        DataError: A word is refused, or there is none.
    """
    model.check_network("the states of layers")
    read_sentence = SentenceReader(model, SurprisalOptions(tokenizer=tokenizer))
    ids = read_sentence(words, "unk", where).ids[:-1]
    # Padded, so that few lengths are compiled.
    states_after = carries(model.network, np.pad(ids, (0, -len(ids) % SEGMENT)))
    arrays = {}
    layers = model.config.model.layers
    for path, leaf in jax.tree_util.tree_leaves_with_path(states_after):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if "." not in name:  # a layer whose carry is one array
            name = f"{name}.h"
        arrays[f"{layers[path[0].idx].kind_name}.{name}"] = np.asarray(leaf)[1 : len(ids), 0]
    return arrays


def neighbors(model: Model, word: str, k: int = 10) -> list[tuple[str, float]]:
    """The other words nearest to a word, with the cosine of their embeddings.

    Args:
        model: The model.
        word: A word of the vocabulary.
        k: How many.

    Raises:
        DataError: The word is unknown.
    """
    checked_value("k", k, int, low=1)
    model.check_network("the neighbours of a word")
    vocab = model.vocab
    word = model.as_known(word)
    if word not in vocab.ids:
        raise DataError(
            f"{word!r} is not among the {len(vocab):,} words of this model's vocabulary"
        )
    place = vocab.ids[word]
    embedding = np.asarray(model.params["embedding"])
    unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit[place]
    cosine[place] = -np.inf
    nearest = np.argsort(-cosine, kind="stable")[: min(k, len(vocab) - 1)]
    return [(vocab.words[i], float(cosine[i])) for i in nearest]
