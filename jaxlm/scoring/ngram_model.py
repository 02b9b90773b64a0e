"""An n-gram model as a `LanguageModel`: scores, predictions and text, as of a run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from jaxlm.base.errors import JaxlmError
from jaxlm.config.config import Config
from jaxlm.ngrams.backoff import BackoffModel
from jaxlm.ngrams.folder import Ngrams
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.ngram_network import NgramNetwork


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

    def check_network(self, use: str) -> NoReturn:
        """Raises JaxlmError."""
        raise JaxlmError(f"an n-gram model has no network, which {use} needs: name a run")
