"""A trained model as an object: perplexity, surprisal, minimal pairs, text and more.

The table names the functions that are its methods. What they need of a model is `Model`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import jax

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.config.config import Config
from jaxlm.data.corpora import load_corpus, reload_corpus
from jaxlm.data.corpus import Corpus
from jaxlm.ngrams.backoff import BackoffModel
from jaxlm.ngrams.folder import Ngrams
from jaxlm.scoring import evaluation, generation, inspection, prediction
from jaxlm.scoring import minimal_pairs as pairs
from jaxlm.scoring import surprisal as tables
from jaxlm.scoring import syntaxgym as suites
from jaxlm.scoring.model import Model
from jaxlm.scoring.ngram_network import NgramNetwork


class LanguageModel(Model):
    """A trained model: one checkpoint's parameters, config and vocabulary.

    A text is split into words as the training text was, unless a method takes a `tokenizer`:
    "none" splits at white space, "ptb" as in Penn Treebank's files. Two models are equal only if
    they are one object.

    Attributes:
        params: The parameters of evaluation: the average, if the run keeps one.
        config: The config of the run.
        vocab: The tokens.
        corpus: Name and hashes of the training corpus.
        data_dir: Where to look for Penn Treebank first.
        open_model: From a directory to its model, where a protocol names one.
    """

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        kind = self.config.kinds["model"]
        trained = self.corpus.get("name", "an unknown text")
        words = f"{len(self.vocab):,} {self.vocab.kind}"
        return f"LanguageModel({kind}, {count:,} parameters, {words}, trained on {trained})"

    def find_corpus(self, corpus: Corpus | str | Path | None = None) -> Corpus:
        """As `Model.find_corpus`."""
        data = self.config.data
        options = {"data_dir": self.data_dir, "vocab": self.vocab, **data.options}
        if not isinstance(corpus, Corpus | None):
            return load_corpus(corpus, **options)
        if corpus is None:
            corpus = reload_corpus(data.corpus, **options)
        if corpus.sha256 != self.corpus["sha256"]:
            trained = f"{self.corpus['name']} (sha256 {self.corpus['sha256']})"
            raise DataError(
                f"this model was trained on {trained}, and the corpus found is {corpus.name} "
                f"({corpus.sha256}): name a corpus or its folder, or evaluate a text file"
            )
        return corpus

    # Whole texts.
    perplexity = evaluation.perplexity
    evaluate = evaluation.evaluate
    tune = evaluation.tune

    # Sentences.
    scorer = tables.scorer
    adaptive = tables.adaptive
    surprisal = tables.surprisal
    surprisal_stream = tables.surprisal_stream
    word_surprisal = tables.word_surprisal
    word_surprisal_stream = tables.word_surprisal_stream
    minimal_pairs = pairs.minimal_pairs
    syntaxgym = suites.syntaxgym

    # Words and text.
    predict = prediction.predict
    generate = generation.generate
    stream = generation.stream
    states = inspection.states
    neighbors = inspection.neighbors


@dataclass(frozen=True, repr=False, eq=False)
class NgramModel(LanguageModel):
    """An n-gram model: its tables stand in the place of a network with parameters.

    Attributes:
        ngram: The tables.
    """

    ngram: BackoffModel = field(kw_only=True)

    @classmethod
    def of(cls, ngrams: Ngrams, data_dir: str | Path | None = None) -> "NgramModel":
        """The model of tables and what they were made of.

        Args:
            ngrams: The tables, the tokens' names and the text's.
            data_dir: Where the model looks for Penn Treebank first.
        """
        config = Config().replace(
            vocab_size=max(2, len(ngrams.vocab)),
            batch_size=1,  # A text is read in one row.
            bptt_length=1,
            corpus=ngrams.corpus["spec"],
            **ngrams.options,
        )
        return cls({}, config, ngrams.vocab, ngrams.corpus, data_dir, ngram=ngrams.model)

    def __repr__(self) -> str:
        words = f"{len(self.vocab):,} {self.vocab.kind}"
        return (
            f"NgramModel(order {self.ngram.order}, {self.ngram.grams:,} n-grams, {words}, "
            f"trained on {self.corpus['name']})"
        )

    @property
    def network(self) -> Any:
        """The tables with the methods of a network."""
        return NgramNetwork(self.ngram, self.config.model)

    def check_network(self, use: str) -> NoReturn:
        """Raises JaxlmError."""
        raise JaxlmError(f"an n-gram model has no network, which {use} needs: name a run")
