"""A trained model as an object: perplexity, next words and neighbours in one line each."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.config import Config
from jaxlm.data.corpora import SPLITS, Corpus, load_corpus, read_text, tokenize
from jaxlm.data.vocab import Vocab
from jaxlm.errors import DataError, JaxlmError
from jaxlm.models import heads, stack
from jaxlm.models.cell import Params
from jaxlm.report.units import perplexity
from jaxlm.scoring.stream import stream_nats


class Evaluation(NamedTuple):
    """Perplexity = exp(nats / predictions), and what was read."""

    perplexity: float
    nats: float
    predictions: int
    text: str


@dataclass(frozen=True)
class LanguageModel:
    """Parameters, config and vocabulary of one checkpoint.

    Attributes:
      params: those that evaluation uses: the average, where the run keeps one.
      config, vocab: the run's.
      corpus: name and hashes of the corpus that it was trained on.
    """

    params: Params
    config: Config
    vocab: Vocab
    corpus: dict[str, str]

    def perplexity(self, text: str) -> float:
        """exp of the mean nats of every word of the text but the first; a newline is `<eos>`, the carry is passed on.

        Raises:
          DataError: the text has fewer than two words.
        """
        return perplexity(*self._nats(self._encode(text)))

    def predict(self, text: str, k: int = 10) -> list[tuple[str, float]]:
        """The k most probable next words after the text, with their probabilities."""
        ids = self._encode(text)
        if not len(ids):
            raise DataError("there is no word to predict from: give at least one")
        p = np.asarray(_next_word(self.config.model, self.params, _padded(ids), len(ids) - 1))
        return [(self.vocab.words[i], float(p[i])) for i in np.argsort(-p, kind="stable")[:_count(k)]]

    def neighbors(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The k words nearest to a word, with the cosine of their embeddings, the word itself left out."""
        if word not in self.vocab.ids:
            raise DataError(f"{word!r} is not among the {len(self.vocab):,} words of this model's vocabulary")
        embedding = np.asarray(self.params["embedding"])
        unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
        cosine = unit @ unit[self.vocab.ids[word]]
        cosine[self.vocab.ids[word]] = -np.inf
        nearest = np.argsort(-cosine, kind="stable")[:min(_count(k), len(self.vocab) - 1)]
        return [(self.vocab.words[i], float(cosine[i])) for i in nearest]

    def evaluate(self, split: str = "test", *, text: str | Path | None = None, corpus: Corpus | None = None,
                 data_dir: str | Path | None = None) -> Evaluation:
        """A split of the run's own corpus, read as training read it, or a file of text, at batch 1.

        Args:
          split: train, valid or test.
          text: a file, in place of a split.
          corpus: the run's corpus, where it is loaded already.
          data_dir: where Penn Treebank's files lie.

        Raises:
          DataError: the corpus is not the one trained on, or the file cannot be read.
        """
        if text is not None:
            nats, count = self._nats(self.vocab.encode(read_text(text, self.config.data.lowercase)))
            return Evaluation(perplexity(nats, count), nats, count, str(text))
        if split not in SPLITS:
            raise JaxlmError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        if corpus is None:
            data = self.config.data
            corpus = load_corpus(data.corpus, data_dir=data_dir, max_vocab=self.config.model.vocab_size,
                                 min_count=data.min_count, lowercase=data.lowercase)
        if corpus.sha256 != self.corpus["sha256"]:
            raise DataError(f"this model was trained on {self.corpus['name']} (sha256 {self.corpus['sha256']}), and "
                            f"the corpus found is {corpus.name} ({corpus.sha256}): name its folder, or evaluate a text "
                            f"file")
        how = (1, 1) if split == "test" else (self.config.train.batch_size, self.config.train.bptt_length)
        nats, count = self._nats(getattr(corpus, split), *how)
        return Evaluation(perplexity(nats, count), nats, count, f"{corpus.name} {split}")

    def _nats(self, ids: np.ndarray, batch_size: int = 1, bptt_length: int = 1) -> tuple[float, int]:
        return stream_nats(self.config.model, self.params, ids, batch_size, bptt_length)

    def _encode(self, text: str) -> np.ndarray:
        return self.vocab.encode(tokenize(text, self.config.data.lowercase))


@jax.jit
def _next_word(model, params, tokens, last):
    """Probabilities [V] of the word after tokens [T, 1], of which those after `last` are padding."""
    carry = stack.zero_carry(model, 1, params["embedding"].dtype)
    features, _ = stack.features(stack.exact(model), params, stack.no_noise(model), stack.embed(params, tokens), carry)
    return jax.nn.softmax(heads.logits(model, params, features[last, 0]))


def _padded(ids: np.ndarray) -> jax.Array:
    """ids [N] as tokens [T, 1], with T a power of two, so that texts of many lengths share a few compiled programs."""
    length = max(16, 1 << (len(ids) - 1).bit_length())
    return jnp.asarray(np.pad(ids, (0, length - len(ids)))[:, None])


def _count(k: int) -> int:
    if k < 1:
        raise JaxlmError(f"k must be at least 1; it is {k}")
    return k
