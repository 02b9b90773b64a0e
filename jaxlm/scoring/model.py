"""A trained model: its vocabulary and texts, by which reader it reads a text, and sentences.

`LanguageModel` is this class with the functions of this folder as its methods; they know a model by
this class.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.base.fields import checked_value
from jaxlm.config.config import Config
from jaxlm.config.protocols import Cache, Dynamic, MCDropout, Mixable, Plain, protocol_of
from jaxlm.data.corpus import Corpus
from jaxlm.data.options import as_read
from jaxlm.data.sources import UNKNOWN
from jaxlm.data.text import SPLITS, read_string
from jaxlm.data.tokens import normalize_newlines
from jaxlm.data.vocab import EOS, UNK, Vocab
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Params
from jaxlm.scoring.displayed_words import punctuation_apart
from jaxlm.scoring.dynamic_evaluation import DynamicReader, gradient_statistics
from jaxlm.scoring.interpolation import MixedNetwork, cannot_open
from jaxlm.scoring.mc_dropout import MCReader
from jaxlm.scoring.neural_cache import CacheReader
from jaxlm.scoring.options import SurprisalOptions
from jaxlm.scoring.reading import ModelReader, OneStream, check_converged, each_sentence
from jaxlm.scoring.sentences import Boundaries, Encoded, Sentence, checked_words
from jaxlm.scoring.token_scores import Detail, Network, Reader, Scoring, TokenScores
from jaxlm.scoring.tokenizers import PTBTokenizer, Tokenizer, at_white_space, is_tokenised


class ReadText(NamedTuple):
    """A text as a model reads it.

    Attributes:
        name: What the text is called in results and errors.
        ids: Its ids [N].
        tokens: The tokens of a file, some of which may be unknown; none for a split.
        corpus: The corpus of a split; None for a file.
    """

    name: str
    ids: np.ndarray
    tokens: Sequence[str] = ()
    corpus: Corpus | None = None


@dataclass(frozen=True, repr=False, eq=False)
class Model:
    """One checkpoint's parameters, config and vocabulary.

    Attributes:
        params: The parameters of evaluation: the average, if the run keeps one.
        config: The config of the run.
        vocab: The tokens.
        corpus: Name and hashes of the training corpus.
        data_dir: Where to look for Penn Treebank first.
        open_model: From a directory to its model, where a protocol names one.
    """

    params: Params
    config: Config
    vocab: Vocab
    corpus: dict[str, str]
    data_dir: str | Path | None = None
    open_model: Callable[[str], Any] = field(default=cannot_open, kw_only=True)
    # Gradient statistics of training texts that were read, for dynamic evaluation.
    _statistics: dict[Any, Params] = field(default_factory=dict, kw_only=True)

    @property
    def network(self) -> Network:
        """The model with its parameters."""
        return Network(self.config.model, self.params)

    @cached_property
    def _tokenizers(self) -> dict[str, Tokenizer]:
        """Tokenizers by name; "" is the training text's."""
        ptb = PTBTokenizer(self.vocab)
        default = ptb if is_tokenised(self.vocab) else at_white_space
        return {"": default, "ptb": ptb, "none": at_white_space}

    def tokenizer(self, name: str | None = None) -> Tokenizer:
        """The tokenizer of a name, "none" or "ptb"; None: that of the training text."""
        checked_value("tokenizer", name or "none", str, choices=("none", "ptb"))
        return self._tokenizers[name or ""]

    def cased(self, text: str) -> str:
        """A text as the run's text was read: perhaps in lower case, or with its lines joined."""
        return as_read(self.config.data, text)

    def line_as_read(self, line: str) -> str:
        """A line as the run's text was read, where another line comes before it."""
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
            return checked_words(text)
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

    def unknown(self, tokens: Sequence[str]) -> list[bool]:
        """Whether each token, in the model's case, is outside the vocabulary.

        A piece that has the name of unknown ones counts as unknown.
        """
        vocab = self.vocab
        unknown_name = None if vocab.kind == "words" else vocab.tokens.unknown
        return [token not in vocab.ids or token == unknown_name for token in tokens]

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
        names = tokens
        if kind == "words" and self.config.data.lowercase:
            names = [word.lower() for word in tokens]
        unknown = self.unknown(names)
        if any(unknown) and (oov == "error" or vocab.unknown_id < 0):
            word = tokens[unknown.index(True)]
            remedy = f"read it as {UNK} with oov=unk"
            if vocab.unknown_id < 0:
                remedy = f"the vocabulary has no {UNK} to stand for it"
            known = f"the {len(vocab):,} {kind} of the vocabulary"
            raise DataError(f"{where}: the {kind[:-1]} {word!r} is not among {known}; {remedy}")
        ids = np.concatenate([[vocab.eos], vocab.encode(names), [vocab.eos]]).astype(np.int32)
        return Encoded(
            tokens=tuple(tokens),
            ids=ids,
            oov=np.array(unknown, bool),
            words=tuple(tokens),
            starts=np.arange(len(tokens) + 1),
            cuts=np.zeros(0, int),
        )

    def check_network(self, use: str) -> None:
        """Raises JaxlmError where the model is no network, which some use needs."""

    def reader_of(
        self,
        protocol: Plain,
        corpus: Corpus | None = None,
        network: Network | None = None,
    ) -> Reader:
        """How this model reads a text by a protocol.

        Args:
            protocol: The protocol.
            corpus: The corpus whose train split dynamic evaluation reads once (default: the run's).
            network: The network, where it scores the boundaries of words too.

        Raises:
            JaxlmError: The protocol means nothing for this model.
            DataError: The training text cannot be read.
        """
        reading: Any = network or self.network
        if protocol.kind_name not in ("plain", "temperature"):
            self.check_network(f"the protocol {protocol.kind_name}")
        if isinstance(protocol, Mixable) and protocol.mixes:
            self.check_network("interpolation")
            reading = MixedNetwork.of(reading, protocol, self.vocab, self.open_model)
        if isinstance(protocol, Cache):
            return CacheReader(reading, protocol)
        if isinstance(protocol, MCDropout):
            return MCReader.of(reading, protocol, self.config.train.bptt_length)
        if isinstance(protocol, Dynamic):
            return self._dynamic_reader(reading, protocol, corpus)
        return ModelReader(reading, protocol)

    def _dynamic_reader(
        self,
        network: Any,
        protocol: Dynamic,
        corpus: Corpus | None,
    ) -> DynamicReader:
        """The reader of a network or mixture that learns; by rms with a corpus's statistics."""
        config = self.config
        if protocol.as_krause and config.model.title != LSTM.kind_name:
            raise JaxlmError(
                f"compatibility {protocol.compatibility} is about the tensors of PyTorch's LSTM, "
                f"and the model is {config.model.title}: leave compatibility out"
            )
        is_mixed = isinstance(network, MixedNetwork)
        if protocol.compatibility != "none" and is_mixed and len(network.learnt) > 1:
            raise JaxlmError(
                f"compatibility {protocol.compatibility} repeats a code that mixes no networks: "
                "leave it or the other run out"
            )
        if protocol.rule == "sgd":
            return DynamicReader(network, protocol, None)
        if corpus is None:
            if config.data.corpus == UNKNOWN:
                raise DataError(
                    "dynamic evaluation by the rule rms reads the training text, which is unknown "
                    "of an imported model: take the rule sgd"
                )
            corpus = self.find_corpus()
        optimizer = config.optimizer if protocol.compatibility == "lamb" else None
        # The statistics depend on none of these numbers.
        settings = replace(
            protocol, learning_rate=0.0, lambda_=0.0, epsilon=0.0, weight=Mixable.weight
        )
        key = corpus.sha256, settings
        if key not in self._statistics:
            self._statistics[key] = gradient_statistics(network, corpus.train, protocol, optimizer)
        return DynamicReader(network, protocol, self._statistics[key], optimizer)

    def scoring_of(self, options: SurprisalOptions, full: bool = True) -> Scoring:
        """A scoring of sentences, as `scorer` returns it.

        Args:
            options: How sentences are scored.
            full: Whether to find entropy and rank.
        """
        protocol = protocol_of(options.protocol)
        reader = self.reader_of(protocol, network=self.network_of(options))
        detail = Detail(options.top_k, full)
        if options.context == "stream":
            score = OneStream(reader, detail)
        else:
            score = partial(each_sentence, reader, detail)

        def checked_scores(sentences: Sequence[np.ndarray]) -> TokenScores:
            scores = score(sentences)
            nats = scores.nats
            check_converged(protocol, "the sentences", nats.sum(dtype=float), len(nats))
            return scores

        return checked_scores

    def network_of(self, options: SurprisalOptions) -> Network:
        """The network, which scores the boundaries of words too where they are to be corrected."""
        boundaries = Boundaries.of(self.vocab, options.punctuation)
        if boundaries is None or options.boundary != "corrected":
            return self.network
        return self.network.with_boundaries(jnp.asarray(boundaries.begins))

    def read(
        self,
        split: str = "test",
        text: str | Path | None = None,
        corpus: Corpus | str | Path | None = None,
        tokenizer: str | None = None,
    ) -> ReadText:
        """Reads a text as `evaluate` takes it.

        Args:
            split: train, valid or test.
            text: A file, in place of a split.
            corpus: As `evaluate` takes it.
            tokenizer: Name of the tokenizer of `text`.

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
            return ReadText(str(text), self.vocab.encode(tokens), tokens)
        checked_value("split", split, str, choices=SPLITS)
        source = self.find_corpus(corpus)
        return ReadText(f"{source.name} {split}", getattr(source, split), corpus=source)

    def find_corpus(self, corpus: Corpus | str | Path | None = None) -> Corpus:
        """Loads a corpus by its name, or the run's own.

        Args:
            corpus: Any text that `--corpus` takes; or the training corpus, already loaded
                (default: found).

        Raises:
            DataError: It cannot be read, or is not the training corpus.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SentenceReader:
    """How every verb reads sentences.

    Attributes:
        model: The model, whose vocabulary and case count.
        options: `tokenizer`, `punctuation` and `context` count: only in a stream a sentence may
            have no words.
    """

    model: Model
    options: SurprisalOptions

    @cached_property
    def boundaries(self) -> Boundaries | None:
        """Where pieces make up words; None where every token is a word."""
        return Boundaries.of(self.model.vocab, self.options.punctuation)

    def __call__(self, sentence: Sentence, oov: str, where: str) -> Encoded:
        """Reads one sentence.

        Args:
            sentence: A line or its words.
            oov: Unknown words are read as `<unk>`, or refused ("error").
            where: Names the sentence in an error.

        Raises:
            DataError: As `Model.encoded`.
        """
        if self.boundaries is None:
            return self._in_words(sentence, oov, where)
        return self._in_pieces(sentence, oov, where, self.boundaries)

    def _in_words(self, sentence: Sentence, oov: str, where: str) -> Encoded:
        if isinstance(sentence, str):
            shown = sentence.split()
            pieces = self.model.tokenizer(self.options.tokenizer)(sentence)
        else:
            shown = checked_words(sentence)
            pieces = [[word] for word in shown]
        if self.options.punctuation == "own":
            shown, pieces = punctuation_apart(shown, pieces)
        tokens = [piece for word in pieces for piece in word]
        starts = np.array([0, *accumulate(map(len, pieces))])
        return replace(self._encoded(tokens, oov, where), words=tuple(shown), starts=starts)

    def _in_pieces(
        self, sentence: Sentence, oov: str, where: str, boundaries: Boundaries
    ) -> Encoded:
        vocab = self.model.vocab
        if isinstance(sentence, str):
            tokens = vocab.tokenize(self.model.line_as_read(sentence).rstrip())
        else:
            tokens = checked_words(sentence)
        encoded = self._encoded(tokens, oov, where)
        starts, cuts = boundaries.split(encoded.ids[1:])
        pieces = vocab.tokens.pieces
        words = ["".join(pieces(tokens[a:b])).strip() for a, b in pairwise(starts)]
        if isinstance(sentence, str):
            # Bytes know ASCII's white space alone.
            white_space = re.ASCII if vocab.kind == "bytes" else re.NOFLAG
            typed = re.findall(r"\S+", sentence, white_space)
            same_words = len(typed) == len(words)
            if self.options.punctuation == "own":
                same_words = [*map(len, typed)] == [*map(len, words)]
            if same_words:
                words = typed
        return replace(encoded, words=tuple(words), starts=starts, cuts=cuts)

    def _encoded(self, tokens: Sequence[str], oov: str, where: str) -> Encoded:
        blank = self.options.context == "stream"
        return self.model.encoded(tokens, oov, where, blank)
