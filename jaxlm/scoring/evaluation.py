"""A trained model on whole texts: perplexity by any protocol, a protocol's best settings, the better of two models."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product, zip_longest
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.config import Config
from jaxlm.config.protocols import (
    PROTOCOLS,
    Cache,
    Dynamic,
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
from jaxlm.data.windows import batch
from jaxlm.errors import DataError, Diverged, JaxlmError
from jaxlm.fields import checked_value, shown, specs
from jaxlm.models.lstm import LSTM
from jaxlm.models.recurrent import Params
from jaxlm.scoring.dynamic_evaluation import DynamicReader, gradient_statistics
from jaxlm.scoring.mc_dropout import MCReader
from jaxlm.scoring.neural_cache import CacheReader
from jaxlm.scoring.reading import GridReader, ModelReader, OneStream, Reader
from jaxlm.scoring.sentences import Sentence, check_words
from jaxlm.scoring.stream import stream_nats
from jaxlm.scoring.token_scores import Detail, Network
from jaxlm.scoring.tokenizers import PTBTokenizer, Tokenizer, at_white_space, is_tokenised
from jaxlm.units import comparable, perplexity

BLOCK = 1 << 16  # tokens that are handed to a reader at a time
READ_ONCE = Cache, Temperature  # whose state depends on no setting: one pass scores a whole grid
BOOTSTRAPS = 10_000  # samples of the lines of a text, with replacement


class Evaluation(NamedTuple):
    """Perplexity = exp(nats / predictions), and what was read.

    Attributes:
        unknown: the share of the text's tokens that are `<unk>`: easily predicted, they make a perplexity look good.
        bits_per_byte, bits_per_character, word_perplexity: as `units.comparable` has them.
    """

    perplexity: float
    nats: float
    predictions: int
    text: str
    unknown: float = 0.0
    bits_per_byte: float = math.nan
    bits_per_character: float = math.nan
    word_perplexity: float = math.nan


class Tuned(NamedTuple):
    """A protocol's settings of the lowest perplexity on valid, and the evaluation of test by them.

    Attributes:
        tried: every protocol with its perplexity on valid, the best first; nan where it diverged.
    """

    protocol: Plain
    valid: float
    tried: list[tuple[Plain, float]]
    test: Evaluation


class Comparison(NamedTuple):
    """Two models on one text, in mean nats a line.

    Attributes:
        difference: the other's less the first's, so that below zero the other is better.
        low_95, high_95: the interval that holds the difference of 95% of the bootstrap's samples.
    """

    text: str
    lines: int
    nats: float
    other_nats: float
    difference: float
    low_95: float
    high_95: float


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """Parameters, config and vocabulary of one checkpoint, and how probable they find texts.

    A text is split into words as the training text was, unless a method takes a `tokenizer`:
    "none" splits at white space, "ptb" as in Penn Treebank's files.

    Attributes:
        params: the parameters of evaluation: the average, if the run keeps one.
        corpus: name and hashes of the training corpus.
    """

    params: Params
    config: Config
    vocab: Vocab
    corpus: dict[str, str]
    _statistics: dict = field(
        default_factory=dict, init=False, compare=False
    )  # of a training text, once read

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        kind = self.config.kinds["model"]
        trained = self.corpus.get("name", "an unknown text")
        words = f"{len(self.vocab):,} {self.vocab.kind}"
        return f"{type(self).__name__}({kind}, {count:,} parameters, {words}, trained on {trained})"

    @property
    def network(self) -> Network:
        """The model with its parameters."""
        return Network(self.config.model, self.params)

    @cached_property
    def _tokenizers(self) -> dict[str, Tokenizer]:
        """Functions from a line to the pieces of each displayed word, by name; "" is the training text's."""
        ptb = PTBTokenizer(self.vocab)
        return {
            "": ptb if is_tokenised(self.vocab) else at_white_space,
            "ptb": ptb,
            "none": at_white_space,
        }

    def tokenizer(self, name: str | None = None) -> Tokenizer:
        """The tokenizer of a name, or that of the training text."""
        checked_value("tokenizer", name or "none", str, choices=("none", "ptb"))
        return self._tokenizers[name or ""]

    def cased(self, text: str) -> str:
        """A text in the case and the lines in which the run's text was read."""
        return as_read(self.config.data, text)

    def line_as_read(self, line: str) -> str:
        """A line, `cased` as it would be after another: without indentation, if the run's text was read so."""
        return self.cased(f"\n{line}")[1:]

    def tokens(self, text: Sentence, tokenizer: str | None = None) -> list[str]:
        """The tokens of a text of any length in the model's case, a word `<eos>` for each newline; a list as it is.

        Raises JaxlmError where `text` is neither a text nor a list of words.
        """
        if not isinstance(text, str):
            return check_words(text)
        if self.vocab.kind != "words":
            return self.vocab.tokenize(self.cased(text))
        pieces = self.tokenizer(tokenizer)
        lines = normalize_newlines(self.cased(text)).split("\n")
        words = (word for line in lines for word in (*pieces(line), [EOS]))
        tokens = [
            sys.intern(piece) for word in words for piece in word
        ]  # one object a word, however long the text
        return tokens[:-1]  # n newlines make n + 1 lines

    def perplexity(self, text: str, *, tokenizer: str | None = None) -> float:
        """exp of the mean nats of every word of the text but the first; a newline is `<eos>`, the carry is passed on.

        Raises DataError where the text has fewer than two words.
        """
        ids, count = _read_and_counted(
            self.vocab.encode(self.tokens(text, tokenizer)), "the text", Plain()
        )
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
        """A split of a corpus, or a file of text.

        `plain` reads train and valid of the run's own corpus in training's rows. Everything else is read in one row.

        Args:
            split: train, valid or test.
            text: a file, in place of a split.
            corpus: the run's corpus, if it is already loaded; or any text that `--corpus` takes, encoded with this
                model's vocabulary.
            data_dir: the folder of Penn Treebank's files.
            protocol: a name, as in "cache", or its settings, as in `Cache(cache_window=100)` (default: plain).
            tokenizer: of `text`.

        Raises:
            DataError: the corpus is not the training corpus, or the file cannot be read.
            JaxlmError: the protocol means nothing for this text or model.
            Diverged: dynamic evaluation learnt at too high a rate.
        """
        found = protocol_of(protocol)
        train = self.config.train
        name, ids, tokens, source = self.read(
            split, text=text, corpus=corpus, data_dir=data_dir, tokenizer=tokenizer
        )
        in_rows = source is not None and not isinstance(corpus, str | Path) and split != "test"
        shape = (train.batch_size, train.bptt_length) if in_rows else (1, 1)
        return self._evaluated(ids, name, found, source, data_dir, shape, tokens)

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
            protocol: a name or a protocol; fields that the grid lacks keep their values.
            grid: values to try, by field (default: the protocol's `grid`).
            corpus, data_dir: as `evaluate` takes them.

        Raises:
            JaxlmError: there is nothing to tune, or the protocol means nothing for this text or model.
            Diverged: every combination diverged.
        """
        source = self.find_corpus(corpus, data_dir)
        protocol = protocol_of(protocol)
        grid = {
            name: np.ravel(values).tolist()
            for name, values in (protocol.grid if grid is None else grid).items()
        }
        if not grid or not all(map(len, grid.values())):
            raise JaxlmError(
                f"the protocol {PROTOCOLS.name_of(protocol)} has nothing left to tune: evaluate it without tuning"
            )
        points = product(*grid.values())
        every = [protocol_of(protocol, **dict(zip(grid, values, strict=True))) for values in points]
        text = f"{source.name} valid"
        found = []
        failed = None
        for one in every:  # before hours of valid
            _read_and_counted(source.test, f"{source.name} test", one)
        if isinstance(protocol, READ_ONCE) and all(
            specs(type(protocol))[name].type is float for name in grid
        ):
            ids, count = _read_and_counted(source.valid, text, protocol)
            values = tuple(jnp.asarray(values, jnp.float32) for values in grid.values())
            nats = reader_nats(GridReader(self.reader_of(protocol), tuple(grid), values), ids)
            found = [perplexity(float(one), count) for one in nats.ravel()]
        else:
            for one in every:
                try:
                    found.append(self._evaluated(source.valid, text, one, source).perplexity)
                except Diverged as error:
                    found.append(math.nan)
                    failed = error
        if failed and all(map(math.isnan, found)):
            raise failed
        tried = sorted(
            zip(every, found, strict=True),
            key=lambda one: math.inf if math.isnan(one[1]) else one[1],
        )
        best, valid = tried[0]
        return Tuned(
            best, valid, tried, self._evaluated(source.test, f"{source.name} test", best, source)
        )

    def read(
        self,
        split: str = "test",
        *,
        text: str | Path | None = None,
        corpus: Corpus | str | Path | None = None,
        data_dir: str | Path | None = None,
        tokenizer: str | None = None,
    ) -> tuple[str, np.ndarray, Sequence[str], Corpus | None]:
        """A text as `evaluate` takes it: its name and ids [N]; of a file its tokens too, of a split its corpus."""
        if (tokenizer if text is None else corpus) is not None:
            raise JaxlmError(
                "a text stands in place of a corpus, and a tokenizer splits a text: leave one out"
            )
        if text is not None:
            tokens = self.tokens(
                read_string(checked_value("text", text, Path), self.vocab.tokens.errors), tokenizer
            )
            return str(text), self.vocab.encode(tokens), tokens, None
        checked_value("split", split, str, choices=SPLITS)
        source = self.find_corpus(corpus, data_dir)
        return f"{source.name} {split}", getattr(source, split), (), source

    def find_corpus(
        self, corpus: Corpus | str | Path | None = None, data_dir: str | Path | None = None
    ) -> Corpus:
        """A corpus by its name, or the run's own, which must be the training corpus (else DataError)."""
        if not isinstance(corpus, Corpus | None):
            return load_corpus(
                corpus, data_dir=data_dir, vocab=self.vocab, **self.config.data.options
            )
        found = reload_corpus(self.config.data, self.vocab, data_dir) if corpus is None else corpus
        if found.sha256 != self.corpus["sha256"]:
            raise DataError(
                f"this model was trained on {self.corpus['name']} (sha256 {self.corpus['sha256']}), and the corpus "
                f"found is {found.name} ({found.sha256}): name a corpus or its folder, or evaluate a text file"
            )
        return found

    def reader_of(
        self,
        protocol: Plain,
        corpus: Corpus | None = None,
        data_dir: str | Path | None = None,
        network: Network | None = None,
    ) -> Reader:
        """The reader of a protocol for this model's network. Raises JaxlmError where it means nothing for the model.

        Dynamic evaluation reads the train split of `corpus` (default: the run's own, found in `data_dir`) once.
        """
        network = network or self.network
        config = self.config
        if isinstance(protocol, Cache):
            return CacheReader(network, protocol)
        if isinstance(protocol, MCDropout):
            return MCReader(network, protocol, config.train.bptt_length)
        if not isinstance(protocol, Dynamic):
            return ModelReader(network, protocol)
        if protocol.as_krause and type(config.model) is not LSTM:
            what = f"compatibility {protocol.compatibility} is about the tensors of PyTorch's LSTM"
            raise JaxlmError(
                f"{what}, and the model is {config.kinds['model']}: leave compatibility out"
            )
        if protocol.rule == "sgd":
            return DynamicReader(network, protocol, None)
        if corpus is None and config.data.corpus == UNKNOWN:
            text = "the training text, which is unknown of an imported model"
            raise DataError(f"dynamic evaluation by the rule rms reads {text}: take the rule sgd")
        optimizer = config.optimizer if protocol.compatibility == "lamb" else None
        train = self.find_corpus(None, data_dir) if corpus is None else corpus
        key = (
            train.sha256,
            replace(protocol, learning_rate=0.0, lambda_=0.0, epsilon=0.0),
        )  # RMS depends on neither
        if key not in self._statistics:
            self._statistics[key] = gradient_statistics(
                self.network, train.train, protocol, optimizer
            )
        return DynamicReader(network, protocol, self._statistics[key], optimizer)

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
        """The perplexity of all tokens but the first of a stream [N], called `text`, the state passed on.

        Plainly it is read as B rows in windows of T, its shape; every other protocol reads one row. `tokens` are those
        of a text that has unknown ones, whose size is then its own; `corpus` and `data_dir` are those of `reader_of`.
        """
        unknown = self.vocab.unknown_share(ids)
        if type(protocol) is Plain:
            nats, count = stream_nats(self.config.model, self.params, ids, *shape)
            value = perplexity(nats, self.config.optimizer.counted(count, shape[0]))
        else:
            shape, (ids, count) = (1, 1), _read_and_counted(ids, text, protocol)
            nats = float(reader_nats(self.reader_of(protocol, corpus, data_dir), ids))
            value = perplexity(nats, count)
        check_converged(protocol, text, nats, count)
        size = self.vocab.text_size(ids, *shape, tokens)
        return Evaluation(value, nats, count, text, unknown, **comparable(nats, size))


def check_converged(protocol: Plain, text: str, nats: float, count: int) -> None:
    """Raises Diverged where dynamic evaluation learnt at so high a rate that the perplexity of a text is not finite."""
    if isinstance(protocol, Dynamic) and not math.isfinite(perplexity(nats, count)):
        raise Diverged(
            f"dynamic evaluation diverged on {text}: lower learning_rate, which is {protocol.learning_rate:g}"
        )


def reader_nats(reader: Reader, ids: np.ndarray) -> np.ndarray:
    """Summed nats of every token of a stream [N] but the first, in constant memory; of a `GridReader` [G1, G2, ...]."""
    scoring = OneStream(reader, Detail(full=False))
    total = np.zeros(())
    for start in range(0, len(ids) - 1, BLOCK):
        total = total + scoring(
            [batch(ids, 1, start=start, stop=start + BLOCK + 1)[:, 0]]
        ).nats.sum(0, dtype=float)
    return total


def _read_and_counted(ids: np.ndarray, text: str, protocol: Plain) -> tuple[np.ndarray, int]:
    """The tokens that a protocol reads of a stream called `text`, and by how many its nats are divided."""
    if (
        isinstance(protocol, Dynamic)
        and protocol.as_krause
        and (len(ids) - 2) % protocol.segment_length == 0
    ):
        ids = ids[:-1]  # that code leaves a last segment of one prediction out
    count = len(ids) - 1
    if count < 1:
        raise DataError(f"{len(ids):,} tokens are too few to evaluate: expected at least 2")
    if isinstance(protocol, Cache):
        window = protocol.cache_window
        if window > count:
            what = f"cache_window {window:,} is larger than the {count:,} predictions of {text}"
            raise JaxlmError(f"{what}: lower cache_window, or evaluate a longer text")
        count += protocol.compatibility == "awd-lstm"  # that code divides by the tokens
    return ids, count


def compare(
    model: TrainedModel,
    other: TrainedModel,
    split: str = "test",
    *,
    text: str | Path | None = None,
    data_dir: str | Path | None = None,
    protocol: str | Plain | None = None,
) -> Comparison:
    """The difference between two models on a split of their corpora or on a file, read as one stream from `<eos>`.

    Tokens may differ, since nats of a whole line are compared. Lines must be equal except for white space and composed
    letters. The interval is that of a paired bootstrap over lines (Koehn 2004, aclanthology.org/W04-3250).

    Args:
        model, other: as `load` returns them.
        split: of each model's own corpus.
        text: a file, in place of a split.
        data_dir, protocol: as `LanguageModel.evaluate` takes them.

    Raises:
        DataError: the texts differ, cannot be read, or have one line only, of which no interval could be told.
        Diverged: dynamic evaluation learnt at too high a rate.
    """
    wrong = [one for one in (model, other) if not isinstance(one, TrainedModel)]
    if wrong:
        raise JaxlmError(
            f"compare takes models, as jaxlm.load returns them; one is {shown(wrong[0])}"
        )
    how = protocol_of(protocol)

    def line_nats(lm: TrainedModel) -> tuple[str, list[str], np.ndarray]:
        """A text's name, its lines without white space, and the nats of each line [L], its end included."""
        name, ids, *_ = lm.read(split, text=text, data_dir=data_dir)
        ids = np.append(lm.vocab.eos, batch(ids, 1)[:, 0])
        starts = np.flatnonzero(ids[:-1] == lm.vocab.newline_id)
        if len(starts) < 2:
            raise DataError(
                f"expected at least 2 lines to draw from, found {len(starts)} in {name}: add lines to it"
            )
        nats = OneStream(lm.reader_of(how, data_dir=data_dir), Detail(full=False))(
            [ids]
        ).nats.astype(np.float64)
        check_converged(how, name, nats.sum(), len(nats))
        texts = (
            normalize("NFC", lm.vocab.decode_text(line)) for line in np.split(ids[1:], starts[1:])
        )
        return name, ["".join(line.split()) for line in texts], np.add.reduceat(nats, starts)

    (name, lines, nats), (_, others, other_nats) = line_nats(model), line_nats(other)
    for number, (line, its) in enumerate(zip_longest(lines, others), 1):
        if line != its:
            one_case = model.config.data.lowercase == other.config.data.lowercase
            case = "" if one_case else " in lower case, as one of them reads it,"
            raise DataError(
                f"the two runs do not read one text: line {number:,} is {line!r:.60} to the first and {its!r:.60} to "
                f"the other; compare runs on a text{case} that both read alike (--lines, numbers and marks too) and "
                f"that leaves the same words unknown to both"
            )
    difference = other_nats - nats
    rng = np.random.default_rng(0)
    L = len(nats)
    means = [difference[rng.integers(L, size=L)].mean() for _ in range(BOOTSTRAPS)]
    interval = np.quantile(means, (0.025, 0.975))
    return Comparison(
        name, L, *map(float, (nats.mean(), other_nats.mean(), difference.mean(), *interval))
    )
