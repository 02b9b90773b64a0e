"""A trained model as an object: perplexity, surprisal, minimal pairs, text and more.

Here is what a model is and how it reads a text; the table at the end of the class names the
functions that are its other methods.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.base.fields import checked_value
from jaxlm.config.config import Config
from jaxlm.config.protocols import Cache, Dynamic, Interpolation, MCDropout, Plain
from jaxlm.data.corpora import UNKNOWN, Corpus, load_corpus, reload_corpus
from jaxlm.data.options import as_read
from jaxlm.data.text import SPLITS, read_string
from jaxlm.data.tokens import normalize_newlines
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Params
from jaxlm.ngrams.backoff import BackoffModel
from jaxlm.ngrams.folder import Ngrams
from jaxlm.scoring import evaluation, generation, inspection, scorers
from jaxlm.scoring import minimal_pairs as pairs
from jaxlm.scoring import surprisal as tables
from jaxlm.scoring import syntaxgym as suites
from jaxlm.scoring.dynamic_evaluation import DynamicReader, gradient_statistics
from jaxlm.scoring.interpolation import InterpolationReader
from jaxlm.scoring.mc_dropout import MCReader
from jaxlm.scoring.neural_cache import CacheReader
from jaxlm.scoring.ngram_network import NgramNetwork
from jaxlm.scoring.reading import ModelReader, Reader
from jaxlm.scoring.sentences import Encoded, Sentence, check_words
from jaxlm.scoring.token_scores import Network
from jaxlm.scoring.tokenizers import PTBTokenizer, Tokenizer, at_white_space, is_tokenised


@dataclass(frozen=True, repr=False, eq=False)
class LanguageModel:
    """A trained model: one checkpoint's parameters, config and vocabulary.

    A text is split into words as the training text was, unless a method takes a `tokenizer`:
    "none" splits at white space, "ptb" as in Penn Treebank's files. Two models are equal only if
    they are one object.

    Attributes:
        params: The parameters of evaluation: the average, if the run keeps one.
        config: The config of the run.
        vocab: The tokens.
        corpus: Name and hashes of the training corpus.
        data_dir: Where to look for Penn Treebank first, if a method is not told.
    """

    params: Params
    config: Config
    vocab: Vocab
    corpus: dict[str, str]
    data_dir: str | Path | None = None
    # Gradient statistics of training texts that were read, for dynamic evaluation.
    _statistics: dict[Any, Params] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        kind = self.config.kinds["model"]
        trained = self.corpus.get("name", "an unknown text")
        words = f"{len(self.vocab):,} {self.vocab.kind}"
        return f"LanguageModel({kind}, {count:,} parameters, {words}, trained on {trained})"

    @property
    def network(self) -> Network:
        """The model with its parameters."""
        return Network(self.config.model, self.params)

    @cached_property
    def _tokenizers(self) -> dict[str, Tokenizer]:
        """Tokenizers by name; "" is the training text's."""
        ptb = PTBTokenizer(self.vocab)
        own = ptb if is_tokenised(self.vocab) else at_white_space
        return {"": own, "ptb": ptb, "none": at_white_space}

    def tokenizer(self, name: str | None = None) -> Tokenizer:
        """The tokenizer of a name, "none" or "ptb", or that of the training text."""
        checked_value("tokenizer", name or "none", str, choices=("none", "ptb"))
        return self._tokenizers[name or ""]

    def cased(self, text: str) -> str:
        """A text in the case and the lines in which the run's text was read."""
        return as_read(self.config.data, text)

    def line_as_read(self, line: str) -> str:
        """A line in the case and the lines of the run's text, as it is read after another line."""
        return self.cased(f"\n{line}")[1:]

    def tokens(self, text: Sentence, tokenizer: str | None = None) -> list[str]:
        """The tokens of a text of any length in the model's case.

        Args:
            text: A text, in which each newline is a word `<eos>`; a list of words stays as it is.
            tokenizer: Name of the tokenizer.

        Raises:
            JaxlmError: It is neither a text nor a list of words.
        """
        if not isinstance(text, str):
            return check_words(text)
        if self.vocab.kind != "words":
            return self.vocab.tokenize(self.cased(text))
        split = self.tokenizer(tokenizer)
        tokens: list[str] = []
        for line in normalize_newlines(self.cased(text)).split("\n"):
            for pieces in split(line):
                # One object a word, however long the text.
                tokens += map(sys.intern, pieces)
            tokens.append(EOS)
        return tokens[:-1]  # n newlines make n + 1 lines

    def as_known(self, word: str) -> str:
        """The name of a token as given, which may be <0x0A>, or else in the model's case."""
        if checked_value("word", word, str) in self.vocab.ids:
            return word
        return self.cased(word)

    def encoded(self, tokens: Sequence[str], oov: str, where: str, blank: bool) -> Encoded:
        """The sentence of some tokens.

        Args:
            tokens: The tokens [n].
            oov: Tokens outside the vocabulary are refused where it is "error", else read as
                `<unk>`.
            where: Names the sentence in an error, as in "stimuli.txt, line 3".
            blank: Whether there may be no token.

        Raises:
            DataError: A token is refused, there is none, or the vocabulary has no `<unk>` or no
                `<eos>`.
        """
        vocab = self.vocab
        kind = vocab.kind
        if not tokens and not blank:
            raise DataError(f"{where} has no words: give at least one, or remove it")
        if kind == "words" and EOS not in vocab.ids:
            raise DataError(
                f"the vocabulary has no {EOS}, and a sentence's first word is predicted from it"
            )
        read = tokens
        hidden = vocab.tokens.unknown  # of pieces, also where a text has its name
        if kind == "words":
            hidden = None
            if self.config.data.lowercase:
                read = [word.lower() for word in tokens]
        unknown = [word not in vocab.ids or word == hidden for word in read]
        if any(unknown) and (oov == "error" or vocab.unknown_id < 0):
            word = tokens[unknown.index(True)]
            remedy = f"read it as {UNK} with oov=unk"
            if vocab.unknown_id < 0:
                remedy = f"the vocabulary has no {UNK} to stand for it"
            known = f"the {len(vocab):,} {kind} of the vocabulary"
            raise DataError(f"{where}: the {kind[:-1]} {word!r} is not among {known}; {remedy}")
        ids = np.concatenate([[vocab.eos], vocab.encode(read), [vocab.eos]]).astype(np.int32)
        whole = np.arange(len(tokens) + 1)
        return Encoded(tuple(tokens), ids, np.array(unknown, bool), tuple(tokens), whole, whole[:0])

    def check_network(self, use: str) -> None:
        """Raises JaxlmError where the model is no network, which some use needs."""

    def reader_of(
        self,
        protocol: Plain,
        corpus: Corpus | None = None,
        data_dir: str | Path | None = None,
        network: Network | None = None,
    ) -> Reader:
        """How this model reads a text by a protocol.

        Args:
            protocol: The protocol.
            corpus: The corpus whose train split dynamic evaluation reads once (default: the run's).
            data_dir: Where to look for Penn Treebank first.
            network: The network, where it scores the boundaries of words too.

        Raises:
            JaxlmError: The protocol means nothing for this model.
            DataError: The training text cannot be read.
        """
        network = network or self.network
        if protocol.kind_name not in ("plain", "temperature"):
            self.check_network(f"the protocol {protocol.kind_name}")
        if isinstance(protocol, Cache):
            return CacheReader(network, protocol)
        if isinstance(protocol, Interpolation):
            return InterpolationReader.of(network, protocol, self.vocab)
        if isinstance(protocol, MCDropout):
            return MCReader.of(network, protocol, self.config.train.bptt_length)
        if isinstance(protocol, Dynamic):
            return self._dynamic_reader(network, protocol, corpus, data_dir)
        return ModelReader(network, protocol)

    def _dynamic_reader(
        self,
        network: Network,
        protocol: Dynamic,
        corpus: Corpus | None,
        data_dir: str | Path | None,
    ) -> DynamicReader:
        """The reader that learns; by the rule rms with the statistics of a corpus."""
        config = self.config
        if protocol.as_krause and config.model.title != LSTM.kind_name:
            raise JaxlmError(
                f"compatibility {protocol.compatibility} is about the tensors of PyTorch's LSTM, "
                f"and the model is {config.model.title}: leave compatibility out"
            )
        if protocol.rule == "sgd":
            return DynamicReader(network, protocol, None)
        if corpus is None:
            if config.data.corpus == UNKNOWN:
                raise DataError(
                    "dynamic evaluation by the rule rms reads the training text, which is unknown "
                    "of an imported model: take the rule sgd"
                )
            corpus = self.find_corpus(None, data_dir)
        optimizer = config.optimizer if protocol.compatibility == "lamb" else None
        # The statistics depend on none of these numbers.
        settings = replace(protocol, learning_rate=0.0, lambda_=0.0, epsilon=0.0)
        key = corpus.sha256, settings
        if key not in self._statistics:
            self._statistics[key] = gradient_statistics(
                self.network, corpus.train, protocol, optimizer
            )
        return DynamicReader(network, protocol, self._statistics[key], optimizer)

    def read(
        self,
        split: str = "test",
        *,
        text: str | Path | None = None,
        corpus: Corpus | str | Path | None = None,
        data_dir: str | Path | None = None,
        tokenizer: str | None = None,
    ) -> tuple[str, np.ndarray, Sequence[str], Corpus | None]:
        """Reads a text as `evaluate` takes it.

        Args:
            split: train, valid or test.
            text: A file, in place of a split.
            corpus: As `evaluate` takes it.
            data_dir: As `evaluate` takes it.
            tokenizer: Name of the tokenizer of `text`.

        Returns:
            Its name and ids [N]; of a file its tokens too; of a split its corpus.

        Raises:
            DataError: The corpus is not the training corpus, or the file cannot be read.
            JaxlmError: A text stands beside a corpus, or a tokenizer beside a split.
        """
        superfluous = tokenizer if text is None else corpus
        if superfluous is not None:
            raise JaxlmError(
                "a text stands in place of a corpus, and a tokenizer splits a text: leave one out"
            )
        if text is not None:
            path = checked_value("text", text, Path)
            tokens = self.tokens(read_string(path, self.vocab.tokens.errors), tokenizer)
            return str(text), self.vocab.encode(tokens), tokens, None
        checked_value("split", split, str, choices=SPLITS)
        source = self.find_corpus(corpus, data_dir)
        return f"{source.name} {split}", getattr(source, split), (), source

    def find_corpus(
        self, corpus: Corpus | str | Path | None = None, data_dir: str | Path | None = None
    ) -> Corpus:
        """Loads a corpus by its name, or the run's own.

        Args:
            corpus: Any text that `--corpus` takes; or the training corpus, already loaded
                (default: found).
            data_dir: Where to look for Penn Treebank first.

        Raises:
            DataError: It cannot be read, or is not the training corpus.
        """
        data_dir = data_dir or self.data_dir
        data = self.config.data
        if not isinstance(corpus, Corpus | None):
            return load_corpus(corpus, data_dir=data_dir, vocab=self.vocab, **data.options)
        if corpus is None:
            corpus = reload_corpus(data.corpus, self.vocab, data_dir=data_dir, **data.options)
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
    scorer = scorers.scorer
    scoring_of = scorers.scoring_of
    adaptive = scorers.adaptive
    scored = tables.scored
    surprisal = tables.surprisal
    surprisal_stream = tables.surprisal_stream
    word_surprisal = tables.word_surprisal
    word_surprisal_stream = tables.word_surprisal_stream
    minimal_pairs = pairs.minimal_pairs
    syntaxgym = suites.syntaxgym

    # Words and text.
    predict = generation.predict
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
