"""An n-gram model as a `LanguageModel`: scores, predictions and text, as of a run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from jaxlm.base.errors import JaxlmError
from jaxlm.config.config import Config
from jaxlm.config.protocols import Plain
from jaxlm.data.corpus import Corpus
from jaxlm.ngrams.backoff import BackoffModel
from jaxlm.ngrams.folder import Ngrams
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.ngram_network import NgramNetwork
from jaxlm.scoring.reading import ModelReader, Reader

_PROTOCOLS = ("plain", "temperature")


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
        grams = sum(len(table.keys) for table in self.ngram.tables)
        words = f"{len(self.vocab):,} {self.vocab.kind}"
        return (
            f"NgramModel(order {self.ngram.order}, {grams:,} n-grams, {words}, "
            f"trained on {self.corpus['name']})"
        )

    @property
    def network(self) -> Any:
        """The tables with the methods of a network."""
        return NgramNetwork(self.ngram, self.config.model)

    def reader_of(
        self,
        protocol: Plain,
        corpus: Corpus | None = None,
        data_dir: str | Path | None = None,
        network: Any = None,
    ) -> Reader:
        """How this model reads a text by a protocol, as `LanguageModel.reader_of`.

        Args:
            protocol: The protocol: plain or temperature.
            corpus: Not used.
            data_dir: Not used.
            network: The network, where it scores the boundaries of words too.

        Raises:
            JaxlmError: The protocol needs a network's state or its parameters.
        """
        name = protocol.kind_name
        if name not in _PROTOCOLS:
            self._refuse(f"the protocol {name}")
        return ModelReader(network or self.network, protocol)

    def adaptive(self, rate: float, **options: Any) -> NoReturn:
        """Refused: an n-gram model has no parameters that learn."""
        self._refuse("adaptation")

    def neighbors(self, word: str, k: int = 10) -> NoReturn:
        """Refused: an n-gram model has no embedding."""
        self._refuse("the neighbours of a word")

    def states(self, words: Any, **options: Any) -> NoReturn:
        """Refused: an n-gram model has no layers."""
        self._refuse("the states of layers")

    def _refuse(self, what: str) -> NoReturn:
        raise JaxlmError(f"an n-gram model has no network, which {what} needs: name a run")
