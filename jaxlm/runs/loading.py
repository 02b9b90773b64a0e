"""A trained run as an object: what one asks of it in one line."""

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
from jaxlm.models import lstm as model
from jaxlm.runs import checkpoint
from jaxlm.runs.manifest import Manifest
from jaxlm.scoring.stream import perplexity, stream_nats


class Evaluation(NamedTuple):
    """Perplexity = exp(nats / predictions), and what was read."""

    perplexity: float
    nats: float
    predictions: int
    text: str


@dataclass(frozen=True)
class LanguageModel:
    """Parameters, config and vocabulary of one checkpoint."""

    params: model.Params
    config: Config
    vocab: Vocab
    manifest: Manifest

    def perplexity(self, text: str) -> float:
        """exp of the mean nats of every word of the text but the first; a newline is `<eos>`, the carry goes on.

        Raises DataError for fewer than two words.
        """
        return perplexity(*stream_nats(self.params, self.config.hyper, self._encode(text)))

    def predict(self, text: str, k: int = 10) -> list[tuple[str, float]]:
        """The k most probable next words after the text, with their probabilities."""
        ids = self._encode(text)
        if not len(ids):
            raise DataError("there is no word to predict from: give at least one")
        p = np.asarray(_next_word(self.params, self.config.hyper, jnp.asarray(ids[:, None])))
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

        Raises DataError where the corpus is not the one trained on, or the file cannot be read.
        """
        hyper = self.config.hyper
        if text is not None:
            ids = self.vocab.encode(read_text(text, self.config.data.lowercase))
            nats, count = stream_nats(self.params, hyper, ids)
            return Evaluation(perplexity(nats, count), nats, count, str(text))
        if split not in SPLITS:
            raise JaxlmError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        if corpus is None:
            data = self.config.data
            corpus = load_corpus(data.corpus, data_dir=data_dir, max_vocab=self.config.model.vocab_size,
                                 min_count=data.min_count, lowercase=data.lowercase)
        if corpus.sha256 != self.manifest.corpus["sha256"]:
            raise DataError(f"this model was trained on {self.manifest.corpus['name']} (sha256 "
                            f"{self.manifest.corpus['sha256']}), and the corpus found is {corpus.name} "
                            f"({corpus.sha256}): name its folder, or evaluate a text file")
        how = (1, 1) if split == "test" else (self.config.train.batch_size, self.config.train.bptt_length)
        nats, count = stream_nats(self.params, hyper, getattr(corpus, split), *how)
        return Evaluation(perplexity(nats, count), nats, count, f"{corpus.name} {split}")

    def _encode(self, text: str) -> np.ndarray:
        return self.vocab.encode(tokenize(text, self.config.data.lowercase))


def load(run_dir: str | Path, which: str = "last") -> LanguageModel:
    """The model of a run's checkpoint: `last`, `best` (on validation), or a step. Raises CheckpointError."""
    found = checkpoint.load(Path(run_dir), which)
    return LanguageModel(found.state.params, found.config, found.vocab, found.manifest)


def evaluate(run: str | Path | LanguageModel, split: str = "test", *, text: str | Path | None = None,
             which: str = "last", corpus: Corpus | None = None, data_dir: str | Path | None = None) -> Evaluation:
    """`LanguageModel.evaluate` of a run's checkpoint."""
    loaded = run if isinstance(run, LanguageModel) else load(run, which)
    return loaded.evaluate(split, text=text, corpus=corpus, data_dir=data_dir)


@jax.jit
def _next_word(params, hyper, tokens):
    """Probabilities [V] of the word after tokens [T, 1]."""
    h, _ = model.apply(params, hyper, model.embed(params, tokens), model.zero_carry(params, 1))
    return jax.nn.softmax(h[-1, 0] @ params["softmax"]["kernel"] + params["softmax"]["bias"])


def _count(k: int) -> int:
    if k < 1:
        raise JaxlmError(f"k must be at least 1; it is {k}")
    return k
