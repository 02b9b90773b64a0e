"""A trained model as an object: perplexity, surprisal, minimal pairs, text and more."""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.base.errors import DataError, Diverged, JaxlmError
from jaxlm.base.fields import checked_value, specs
from jaxlm.base.units import comparable, perplexity
from jaxlm.config.config import Config
from jaxlm.config.protocols import (
    Cache,
    Dynamic,
    Interpolation,
    MCDropout,
    Plain,
    Temperature,
    protocol_of,
)
from jaxlm.data.corpora import UNKNOWN, Corpus, load_corpus, reload_corpus
from jaxlm.data.options import as_read
from jaxlm.data.text import SPLITS, read_string
from jaxlm.data.tokens import normalize_newlines
from jaxlm.data.vocab import EOS, Vocab
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Params
from jaxlm.scoring import generation
from jaxlm.scoring.dynamic_evaluation import AdaptiveScoring, DynamicReader, gradient_statistics
from jaxlm.scoring.evaluation import Evaluation, Tuned, check_converged, read_and_counted
from jaxlm.scoring.generation import Text
from jaxlm.scoring.interpolation import InterpolationReader, likeliest_weight
from jaxlm.scoring.mc_dropout import MCReader
from jaxlm.scoring.minimal_pairs import MinimalPairs, Pair, read_pairs, score_pairs
from jaxlm.scoring.neural_cache import CacheReader
from jaxlm.scoring.reading import (
    FREE,
    GridReader,
    ModelReader,
    OneStream,
    Reader,
    carries,
    each_sentence,
)
from jaxlm.scoring.sampling import Sampling, sampling_of
from jaxlm.scoring.sentences import (
    Boundaries,
    Encoded,
    Region,
    Sentence,
    SentenceReader,
    as_given,
    blocks,
    check_words,
    encode,
    in_regions,
)
from jaxlm.scoring.stream import reader_nats, windowed_nats
from jaxlm.scoring.surprisal import (
    SurprisalOptions,
    Surprisals,
    WordSurprisals,
    by_region,
    by_word,
    surprisals,
)
from jaxlm.scoring.syntaxgym import Suite, SuiteResult, read_suite, score_suite
from jaxlm.scoring.token_scores import NATS_ALONE, Detail, Network, Scoring, TokenScores
from jaxlm.scoring.tokenizers import PTBTokenizer, Tokenizer, at_white_space, is_tokenised

# Protocols whose state depends on no setting: one pass scores a whole grid.
READ_ONCE = Cache, Interpolation, Temperature


@dataclass(frozen=True, repr=False, eq=False)
class LanguageModel:
    """A trained model: one checkpoint's parameters, config and vocabulary.

    A text is split into words as the training text was, unless a method takes a `tokenizer`:
    "none" splits at white space, "ptb" as in Penn Treebank's files. Scores come from the reader
    that `reader_of` returns; `predict`, `neighbors`, `states`, `adaptive` and text come from the
    network itself. Two models are equal only if they are one object.

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

    # From text to tokens.

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

    def _as_known(self, word: str) -> str:
        """The name of a token as given, which may be <0x0A>, or else in the model's case."""
        if checked_value("word", word, str) in self.vocab.ids:
            return word
        return self.cased(word)

    # How a text is read for scores.

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
        config = self.config
        if isinstance(protocol, Cache):
            return CacheReader(network, protocol)
        if isinstance(protocol, Interpolation):
            return InterpolationReader.of(network, protocol, config.model, self.vocab)
        if isinstance(protocol, MCDropout):
            return MCReader.of(network, protocol, config.train.bptt_length)
        if not isinstance(protocol, Dynamic):
            return ModelReader(network, protocol)
        if protocol.as_krause and config.model.title != LSTM.kind_name:
            option = f"compatibility {protocol.compatibility}"
            raise JaxlmError(
                f"{option} is about the tensors of PyTorch's LSTM, and the model is "
                f"{config.model.title}: leave compatibility out"
            )
        if protocol.rule == "sgd":
            return DynamicReader(network, protocol, None)
        if corpus is None and config.data.corpus == UNKNOWN:
            raise DataError(
                "dynamic evaluation by the rule rms reads the training text, which is unknown of "
                "an imported model: take the rule sgd"
            )
        optimizer = config.optimizer if protocol.compatibility == "lamb" else None
        if corpus is None:
            corpus = self.find_corpus(None, data_dir)
        # The statistics depend on none of these numbers.
        settings = replace(protocol, learning_rate=0.0, lambda_=0.0, epsilon=0.0)
        key = corpus.sha256, settings
        if key not in self._statistics:
            self._statistics[key] = gradient_statistics(
                self.network, corpus.train, protocol, optimizer
            )
        return DynamicReader(network, protocol, self._statistics[key], optimizer)

    def scorer(
        self,
        context: str = "sentence",
        *,
        full: bool = True,
        **options: Any,
    ) -> Scoring:
        """A scoring of sentences: each by itself, or one after the other with the state passed on.

        Args:
            context: "sentence" or "stream".
            full: Whether to find entropy and rank.
            **options: Fields of `SurprisalOptions`.

        Returns:
            A function from sentences of ids to scores. It raises Diverged where dynamic evaluation
            learnt at too high a rate.

        Raises:
            JaxlmError: An option is none of the choices.
        """
        how = SurprisalOptions(context=context, **options)
        return self._scoring(how, full)

    def _scoring(self, how: SurprisalOptions, full: bool) -> Scoring:
        protocol = protocol_of(how.protocol)
        detail = Detail(how.top_k, full)
        reader = self.reader_of(protocol, None, how.data_dir, self._network(how))
        if how.context == "stream":
            read = OneStream(reader, detail)
        else:
            read = partial(each_sentence, reader, detail)

        def scoring(sentences: Sequence[np.ndarray]) -> TokenScores:
            scores = read(sentences)
            nats = scores.nats
            check_converged(protocol, "the sentences", nats.sum(dtype=float), len(nats))
            return scores

        return scoring

    def _network(self, how: SurprisalOptions) -> Network:
        """The network, which also scores the boundaries of words where they are to be corrected."""
        if how.boundary == "corrected":
            boundaries = self.sentence_reader(how).boundaries
            if boundaries is not None:
                return self.network.with_boundaries(jnp.asarray(boundaries.begins))
        return self.network

    def adaptive(self, rate: float, **options: Any) -> AdaptiveScoring:
        """A scoring that takes a step of SGD after each sentence; its `params` are adapted.

        Args:
            rate: Learning rate.
            **options: `context`, `top_k`, `boundary` and `punctuation` of `SurprisalOptions`.

        Raises:
            JaxlmError: The rate is not above 0, or there is a protocol.
        """
        how = SurprisalOptions(**options)
        if protocol_of(how.protocol).kind_name != "plain":
            raise JaxlmError("a model learns from its own probabilities: leave the protocol out")
        return AdaptiveScoring(self._network(how), rate, how.context == "stream", Detail(how.top_k))

    # Whole texts.

    def perplexity(
        self,
        text: str,
        *,
        tokenizer: str | None = None,
        from_eos: bool = False,
    ) -> float:
        """The perplexity of every word of a text but the first.

        The state is passed on from line to line.

        Args:
            text: The text; a newline is a word `<eos>`.
            tokenizer: Name of the tokenizer.
            from_eos: Whether the first word counts too, predicted from `<eos>` as `surprisal`
                predicts it: of one line it is then exp of the mean surprisal in nats.

        Raises:
            DataError: The text has no word to predict.

        >>> import jaxlm, math
        >>> lm = jaxlm.load("runs/tiny")
        >>> mean = lm.surprisal(["the bank lends"], unit="nats").surprisal.mean()
        >>> perplexity = lm.perplexity("the bank lends", from_eos=True)
        >>> math.isclose(perplexity, math.exp(mean), rel_tol=1e-5)
        True
        """
        ids = self.vocab.encode(self.tokens(text, tokenizer))
        if from_eos:
            ids = np.append(self.vocab.eos, ids).astype(np.int32)
        ids, count = read_and_counted(ids, "the text", Plain())
        return perplexity(float(reader_nats(self.reader_of(Plain()), ids)), count)

    def evaluate(
        self,
        split: str = "test",
        *,
        text: str | Path | None = None,
        corpus: Corpus | str | Path | None = None,
        data_dir: str | Path | None = None,
        protocol: str | Plain | None = None,
        tokenizer: str | None = None,
    ) -> Evaluation:
        """Evaluates a split of a corpus, or a file of text.

        `plain` reads train and valid of the run's own corpus in training's rows. Everything else is
        read in one row.

        Args:
            split: train, valid or test.
            text: A file, in place of a split.
            corpus: The run's corpus, if it is already loaded; or any text that `--corpus` takes,
                encoded with this model's vocabulary.
            data_dir: The folder of Penn Treebank's files.
            protocol: A name, as in "cache", or its settings, as in `Cache(cache_window=100)`
                (default: plain).
            tokenizer: Name of the tokenizer of `text`.

        Returns:
            The perplexity of every token but the first of each row.

        Raises:
            DataError: The corpus is not the training corpus, or the file cannot be read.
            JaxlmError: The protocol means nothing for this text or model.
            Diverged: Dynamic evaluation learnt at too high a rate.
        """
        how = protocol_of(protocol)
        train = self.config.train
        name, ids, tokens, source = self.read(
            split, text=text, corpus=corpus, data_dir=data_dir, tokenizer=tokenizer
        )
        shape = 1, 1
        if source is not None and not isinstance(corpus, str | Path) and split != "test":
            shape = train.batch_size, train.bptt_length
        return self._evaluated(ids, name, how, source, data_dir, shape, tokens)

    def tune(
        self,
        protocol: str | Plain,
        *,
        grid: Mapping[str, Sequence[float]] | None = None,
        corpus: Corpus | str | Path | None = None,
        data_dir: str | Path | None = None,
    ) -> Tuned:
        """Chooses a protocol's settings on valid; then reads test, once.

        Args:
            protocol: A name or a protocol; fields that the grid lacks keep their values.
            grid: Values to try, by field (default: the protocol's `grid`).
            corpus: As `evaluate` takes it.
            data_dir: As `evaluate` takes it.

        Returns:
            The best settings, all that were tried, and the evaluation of test.

        Raises:
            JaxlmError: There is nothing to tune, or the protocol means nothing for this text or
                model.
            Diverged: Every combination diverged.
        """
        source = self.find_corpus(corpus, data_dir)
        protocol = protocol_of(protocol)
        if grid is None:
            grid = protocol.grid
        if isinstance(protocol, Interpolation) and grid == protocol.grid:
            grid = {"weight": (*grid["weight"], self._likeliest_weight(protocol, source))}
        grid = {name: np.ravel(values).tolist() for name, values in grid.items()}
        if not grid or not all(grid.values()):
            kind = protocol.kind_name
            raise JaxlmError(
                f"the protocol {kind} has nothing left to tune: evaluate it without tuning"
            )
        protocols = [
            protocol_of(protocol, **dict(zip(grid, values, strict=True)))
            for values in product(*grid.values())
        ]
        test, valid = f"{source.name} test", f"{source.name} valid"
        for candidate in protocols:
            read_and_counted(source.test, test, candidate)  # before hours of valid
        traced = all(specs(type(protocol))[name].type is float for name in grid)
        perplexities = []
        failure = None
        if isinstance(protocol, READ_ONCE) and traced:
            ids, count = read_and_counted(source.valid, valid, protocol)
            values = tuple(jnp.asarray(values, jnp.float32) for values in grid.values())
            nats = reader_nats(GridReader(self.reader_of(protocol), tuple(grid), values), ids)
            perplexities = [perplexity(total, count) for total in nats.ravel().tolist()]
        else:
            for candidate in protocols:
                try:
                    evaluation = self._evaluated(source.valid, valid, candidate, source)
                    perplexities.append(evaluation.perplexity)
                except Diverged as error:
                    perplexities.append(math.nan)
                    failure = error
        if failure and all(map(math.isnan, perplexities)):
            raise failure

        def rank(trial: tuple[Plain, float]) -> float:
            return math.inf if math.isnan(trial[1]) else trial[1]

        tried = sorted(zip(protocols, perplexities, strict=True), key=rank)
        best, lowest = tried[0]
        return Tuned(best, lowest, tried, self._evaluated(source.test, test, best, source))

    def _likeliest_weight(self, protocol: Interpolation, source: Corpus) -> float:
        """The weight of the n-gram model that makes the valid split likeliest."""
        ids, _ = read_and_counted(source.valid, f"{source.name} valid", protocol)
        nats = []
        for weight in protocol.grid["weight"]:
            reader = self.reader_of(protocol_of(protocol, weight=weight))
            nats.append(OneStream(reader, NATS_ALONE)([ids]).nats)
        return likeliest_weight(*nats)

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
        if (tokenizer if text is None else corpus) is not None:
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

    def _evaluated(
        self,
        ids: np.ndarray,
        text: str,
        protocol: Plain,
        corpus: Corpus | None,
        data_dir: str | Path | None = None,
        shape: tuple[int, int] = (1, 1),
        tokens: Sequence[str] = (),
    ) -> Evaluation:
        """The perplexity of all tokens but the first of a stream [N], called `text`.

        Plainly it is read as B rows in windows of T, its shape; every other protocol reads one row.
        `tokens` are those of a text that has unknown ones, whose size is then its own; `corpus` and
        `data_dir` are those of `reader_of`.
        """
        unknown = self.vocab.unknown_share(ids)
        if type(protocol) is Plain:
            nats, predictions = windowed_nats(self.reader_of(protocol), ids, *shape)
            count = self.config.optimizer.counted(predictions, shape[0])
        else:
            shape = 1, 1
            ids, count = read_and_counted(ids, text, protocol)
            nats = float(reader_nats(self.reader_of(protocol, corpus, data_dir), ids))
            predictions = count
        check_converged(protocol, text, nats, predictions)
        numbers = comparable(nats, self.vocab.text_size(ids, *shape, tokens))
        return Evaluation(perplexity(nats, count), nats, predictions, text, unknown, **numbers)

    # Sentences, word by word.

    def sentence_reader(self, how: SurprisalOptions) -> SentenceReader:
        """How sentences are read, by `tokenizer`, `punctuation` and `context` of the options."""
        return SentenceReader(
            self.vocab,
            self.config.data.lowercase,
            self.line_as_read,
            self.tokenizer(how.tokenizer),
            how.punctuation,
            blank=how.context == "stream",
        )

    def surprisal(self, sentences: Iterable[Sentence], **options: Any) -> Surprisals:
        """The surprisal of every word, with entropy, entropy reduction and rank, as plain arrays.

        Args:
            sentences: Lines, or lists of words; the first word of each is predicted from `<eos>`.
            **options: Fields of `SurprisalOptions`, as in `context="stream"`.

        Raises:
            DataError: There are no sentences, one has no words, or an unknown word is refused.
            JaxlmError: An option is none of the choices.

        >>> import jaxlm
        >>> lm = jaxlm.load("runs/tiny")
        >>> table = lm.surprisal(["the bank", "zebra"])
        >>> table.word, table.oov.tolist(), table.surprisal.shape
        (['the', 'bank', 'zebra'], [False, False, True], (3,))
        """
        return Surprisals.joined(self.surprisal_stream(sentences, **options))

    def surprisal_stream(
        self, sentences: Iterable[Sentence], **options: Any
    ) -> Iterator[Surprisals]:
        """`surprisal` of an iterator of any length in constant memory.

        Args:
            sentences: Lines, or lists of words; with the context "stream" they may be empty.
            **options: Fields of `SurprisalOptions`.

        Returns:
            A table for each block of sentences.

        Raises:
            DataError: A sentence has no words, or an unknown word is refused.
            JaxlmError: An option is none of the choices.
        """
        how = SurprisalOptions(**options)
        return (table for _, _, table in self.scored(sentences, how))

    def word_surprisal(self, sentences: Iterable[Sentence], **options: Any) -> WordSurprisals:
        """The surprisal of every displayed word: one with white space around it, its pieces summed.

        Args:
            sentences: Lines.
            **options: `regions` of `word_surprisal_stream`; fields of `SurprisalOptions` except
                `top_k`.

        Raises:
            DataError: There are no sentences, one has no piece, or regions do not tile them.
            JaxlmError: An option is none of the choices.
        """
        return WordSurprisals.joined(self.word_surprisal_stream(sentences, **options))

    def word_surprisal_stream(
        self,
        sentences: Iterable[Sentence],
        *,
        regions: Sequence[Sequence[Region]] | None = None,
        **options: Any,
    ) -> Iterator[WordSurprisals]:
        """`word_surprisal` of an iterator of any length in constant memory.

        Args:
            sentences: Lines.
            regions: The regions of each sentence, to sum over in place of words: texts that make
                up its words, or pairs of a name and such a text.
            **options: Fields of `SurprisalOptions` except `top_k`.

        Yields:
            A table for each block of sentences; with `regions` it is of `RegionSurprisals`.

        Raises:
            DataError: A sentence has no piece, or regions do not tile the sentences.
            JaxlmError: An option is none of the choices.
        """
        how = SurprisalOptions(**options)
        done = 0
        for number, encoded, table in self.scored(sentences, how):
            if regions is None:
                yield by_word(table, encoded, number, how.eos)
                continue
            given = [*regions[done : done + len(encoded)]]
            given += [()] * (len(encoded) - len(given))
            places = [
                in_regions(sentence, named, how.where(at))
                for at, (sentence, named) in enumerate(zip(encoded, given, strict=True), number)
            ]
            yield by_region(table, encoded, given, places, number, how.eos)
            done += len(encoded)
        if regions is not None and len(regions) > done:
            more = len(regions) - done
            raise DataError(
                f"regions has {more} lists more than sentences has lines: give one for each line"
            )

    def scored(
        self, sentences: Iterable[Sentence], how: SurprisalOptions
    ) -> Iterator[tuple[int, list[Encoded], Surprisals]]:
        """Reads and scores sentences block by block.

        Args:
            sentences: As `surprisal_stream` takes them.
            how: The options.

        Yields:
            Of each block the number of its first sentence, how its sentences are read, and the
            table of their tokens.

        Raises:
            DataError: A sentence has no words, or an unknown word is refused.
            JaxlmError: These are no sentences.
        """
        scoring = how.scoring or self._scoring(how, full=True)
        if isinstance(sentences, str | bytes) or not isinstance(sentences, Iterable):
            raise JaxlmError(f"sentences must be a list of lines; it is {sentences!r:.80}")
        read = self.sentence_reader(how)
        first = how.first
        for lines in blocks(sentences, how.block):
            encoded = [
                as_given(read(line, how.oov, how.where(number)))
                for number, line in enumerate(lines, first)
            ]
            scores = scoring([sentence.ids for sentence in encoded])
            yield first, encoded, surprisals(scores, self.vocab, encoded, how, first)
            first += len(lines)

    def states(
        self,
        words: Sentence,
        *,
        tokenizer: str | None = None,
        where: str = "the sentence",
    ) -> dict[str, np.ndarray]:
        """The state of every layer after each of N words of a sentence; `<eos>` is read first.

        Args:
            words: A line, or a list of words.
            tokenizer: Name of the tokenizer.
            where: Names the sentence in an error.

        Returns:
            Arrays [N, ...] by name, as in `lstm.0.c`.

        Raises:
            DataError: A word is refused, or there is none.
        """
        sentence = self.sentence_reader(SurprisalOptions(tokenizer=tokenizer))(words, "unk", where)
        kind = self.config.kinds["model"]
        ids = sentence.ids[:-1]
        # Padded, so that few lengths are compiled.
        after = carries(self.network, np.pad(ids, (0, -len(ids) % FREE)))
        arrays = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(after):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if "." not in name:  # a layer whose carry is one array
                name = f"{name}.h"
            arrays[f"{kind}.{name}"] = np.asarray(leaf)[1 : len(ids), 0]
        return arrays

    def minimal_pairs(
        self,
        pairs: str | Path | Iterable[str | Path | Pair],
        *,
        oov: str = "unk",
        eos: bool = False,
        **options: Any,
    ) -> MinimalPairs:
        """Accuracy on minimal pairs in BLiMP's format, by UID and in all.

        Args:
            pairs: Files of JSON lines, or pairs.
            oov: Unknown words are read as `<unk>` ("unk") or refused ("error"); "filter" leaves out
                pairs that differ in unknown words only.
            eos: Whether the `<eos>` after the last word is a part of the sentence.
            **options: `tokenizer`, `boundary`, `punctuation`, `protocol` and `data_dir` of
                `SurprisalOptions`.

        Raises:
            DataError: A file is malformed, or an unknown word is refused.
        """
        how = SurprisalOptions(context="sentence", **options)
        given = read_pairs([pairs] if isinstance(pairs, str | Path) else pairs)
        scoring = self._scoring(how, full=False)
        return score_pairs(scoring, self.sentence_reader(how), given, oov, eos)

    def syntaxgym(
        self,
        suite: str | Path | Suite,
        *,
        oov: str = "unk",
        **options: Any,
    ) -> SuiteResult:
        """Results of a SyntaxGym test suite.

        Args:
            suite: Its JSON file, or what `read_suite` made of it.
            oov: Unknown words are read as `<unk>` ("unk") or refused ("error").
            **options: As `minimal_pairs` takes them.

        Raises:
            DataError: The suite is malformed, or an unknown word is refused.
        """
        how = SurprisalOptions(context="sentence", **options)
        if not isinstance(suite, Suite):
            suite = read_suite(suite)
        return score_suite(self._scoring(how, full=False), self.sentence_reader(how), suite, oov)

    # Words and text.

    def predict(
        self,
        text: str,
        k: int = 10,
        *,
        tokenizer: str | None = None,
    ) -> list[tuple[str, float]]:
        """The most probable next words after a text, with their probabilities.

        Args:
            text: The words so far.
            k: How many.
            tokenizer: Name of the tokenizer.

        Raises:
            DataError: The text has no words.
        """
        checked_value("k", k, int, low=1)
        ids = self.vocab.encode(self.tokens(text, tokenizer))
        if not len(ids):
            raise DataError("there is no word to predict from: give at least one")
        return generation.next_words(self.network, self.vocab, ids, k)

    def neighbors(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The other words nearest to a word, with the cosine of their embeddings.

        Args:
            word: A word of the vocabulary.
            k: How many.

        Raises:
            DataError: The word is unknown.
        """
        checked_value("k", k, int, low=1)
        word = self._as_known(word)
        if word not in self.vocab.ids:
            known = f"the {len(self.vocab):,} words of this model's vocabulary"
            raise DataError(f"{word!r} is not among {known}")
        place = self.vocab.ids[word]
        embedding = np.asarray(self.params["embedding"])
        unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
        cosine = unit @ unit[place]
        cosine[place] = -np.inf
        nearest = np.argsort(-cosine, kind="stable")[: min(k, len(self.vocab) - 1)]
        return [(self.vocab.words[i], float(cosine[i])) for i in nearest]

    def generate(
        self,
        prompt: Sentence = (),
        *,
        words: int | None = None,
        tokens: int | None = None,
        samples: int = 1,
        seed: int = 0,
        stop: str = "none",
        beam: int | None = None,
        **sampling: Any,
    ) -> list[Text]:
        """Texts that continue a prompt, all in one compiled loop.

        Args:
            prompt: A text or words; unknown words are read as `<unk>`.
            words: Most words of each text, also where tokens are pieces of words.
            tokens: Most tokens of each text, in place of `words` (default: 100).
            samples: How many texts.
            seed: Of all texts: a sample is the same alone and among many.
            stop: "eos" ends a text at its first `<eos>`; "none" does not.
            beam: In place of sampling, search for the most probable text, keeping so many at each
                token.
            **sampling: `temperature`, `top_k`, `top_p`, `min_p` and `repetition_penalty` of
                `Sampling`; `ban`, words that never come; `no_unk`, so that `<unk>` never comes.

        Raises:
            JaxlmError: A number is outside its limits, options contradict each other, or a banned
                word is unknown.

        >>> import jaxlm
        >>> lm = jaxlm.load("runs/tiny")
        >>> texts = lm.generate("the bank", words=5, samples=2, top_p=0.9, ban=["<eos>"])
        >>> [len(text.words) for text in texts], texts[0].log_probs.shape
        ([5, 5], (5,))
        >>> alone, (first, *_) = lm.generate("a", words=5), lm.generate("a", words=5, samples=3)
        >>> str(alone[0]) == str(first)
        True
        """
        if words is None and tokens is None:
            tokens = 100
        if beam is None:
            chunks = self._drawn(prompt, words, tokens, samples, seed, stop, sampling)
            return generation.texts_of(self.vocab, *map(np.concatenate, zip(*chunks, strict=True)))
        neutral = {"samples": 1, "seed": 0, "temperature": 1.0}
        for name, value in {"samples": samples, "seed": seed, **sampling}.items():
            if name not in ("ban", "no_unk") and value != neutral.get(name):
                raise JaxlmError(
                    "beam searches for the most probable text and draws nothing, and "
                    f"{name} is given: leave one out"
                )
        most, boundaries = self._length(words, tokens)
        if boundaries is not None:
            raise JaxlmError("beam counts tokens: give tokens in place of words")
        how, ids, end = self._begun(prompt, stop, **sampling)
        return [
            generation.beam_search(
                self.network, self.vocab, how, ids, tokens=most or 100, beam=beam, end=end
            )
        ]

    def stream(
        self,
        prompt: Sentence = (),
        *,
        words: int | None = None,
        tokens: int | None = None,
        seed: int = 0,
        stop: str = "none",
        **sampling: Any,
    ) -> Iterator[tuple[str, float]]:
        """The first text of `generate`, token by token.

        Args:
            prompt: A text or words.
            words: Most words of the text.
            tokens: Most tokens of the text; without both it has no end.
            seed: Seed of the text.
            stop: "eos" ends the text at its first `<eos>`; "none" does not.
            **sampling: As `generate` takes it.

        Returns:
            An iterator of each token and its log-probability in nats.

        Raises:
            JaxlmError: As `generate`, before the first token is drawn.
        """
        chunks = self._drawn(prompt, words, tokens, 1, seed, stop, sampling)
        return (
            (self.vocab.words[token], log_p)
            for ids, log_probs in chunks
            for token, log_p in zip(ids[:, 0].tolist(), log_probs[:, 0].tolist(), strict=True)
            if token >= 0
        )

    def _drawn(
        self,
        prompt: Sentence,
        words: int | None,
        tokens: int | None,
        samples: int,
        seed: int,
        stop: str,
        sampling: Mapping[str, Any],
    ) -> Iterator[generation.Chunk]:
        """Texts drawn after a prompt, of so many words or tokens."""
        most, boundaries = self._length(words, tokens)
        how, ids, end = self._begun(prompt, stop, **sampling)
        chunks = generation.drawn(
            self.network, how, ids, tokens=most, end=end, samples=samples, seed=seed
        )
        if words is None or boundaries is None:
            return chunks
        return generation.first_words(chunks, boundaries, int(ids[-1]), words)

    def _length(
        self, words: int | None, tokens: int | None
    ) -> tuple[int | None, Boundaries | None]:
        """Most tokens of a text (None: no end), and what tells words of pieces where they count."""
        checked_value("tokens", tokens, int, low=1, optional=True)
        if words is None:
            return tokens, None
        checked_value("words", words, int, low=1)
        if tokens is not None:
            raise JaxlmError("a text has so many words or so many tokens: leave one out")
        boundaries = Boundaries.of(self.vocab, "word")
        if boundaries is None or not boundaries.begins.any():
            return words, None
        return words * generation.LONGEST_WORD, boundaries

    def _begun(
        self,
        prompt: Sentence,
        stop: str,
        ban: Iterable[str] = (),
        **options: Any,
    ) -> tuple[Sampling, np.ndarray, int]:
        """How to sample, the ids of `<eos>` and the prompt, the id that ends a text (-1: none)."""
        checked_value("stop", stop, str, choices=("eos", "none"))
        if stop == "eos" and self.vocab.newline_id < 0:
            raise JaxlmError(
                "stop eos ends a text at a newline, and this model's training text had none: "
                "leave it out"
            )
        ban = [ban] if isinstance(ban, str) else ban
        how = sampling_of(self.vocab, ban=map(self._as_known, ban), **options)
        tokens = self.tokens(prompt)
        lowercase = self.config.data.lowercase
        ids = encode(self.vocab, tokens, "unk", "the prompt", lowercase, blank=True).ids
        return how, ids[:-1], self.vocab.eos if stop == "eos" else -1
