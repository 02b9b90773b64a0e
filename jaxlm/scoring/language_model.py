"""A trained model as an object: perplexity, surprisal, minimal pairs, text and more, in one line each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.protocols import PROTOCOLS, protocol_of
from jaxlm.errors import DataError, JaxlmError
from jaxlm.fields import checked_value
from jaxlm.scoring import generation
from jaxlm.scoring.dynamic_evaluation import AdaptiveScoring
from jaxlm.scoring.evaluation import TrainedModel, check_converged
from jaxlm.scoring.generation import Text
from jaxlm.scoring.minimal_pairs import MinimalPairs, Pair, read_pairs, score_pairs
from jaxlm.scoring.reading import FREE, OneStream, carries, each_sentence
from jaxlm.scoring.sampling import sampling_of
from jaxlm.scoring.sentences import (
    BLOCK,
    Encoded,
    Sentence,
    SentenceReader,
    blocks,
    encode,
    in_regions,
)
from jaxlm.scoring.surprisal import (
    SurprisalOptions,
    Surprisals,
    WordSurprisals,
    by_word,
    surprisals,
)
from jaxlm.scoring.syntaxgym import Suite, SuiteResult, read_suite, score_suite
from jaxlm.scoring.token_scores import Detail, Network, Scoring, TokenScores


class LanguageModel(TrainedModel):
    """A trained model: what `TrainedModel` has, the scores of sentences, and text."""

    def predict(
        self, text: str, k: int = 10, *, tokenizer: str | None = None
    ) -> list[tuple[str, float]]:
        """The k most probable next words after the text, with their probabilities."""
        checked_value("k", k, int, low=1)
        ids = self.vocab.encode(self.tokens(text, tokenizer))
        if not len(ids):
            raise DataError("there is no word to predict from: give at least one")
        return generation.next_words(self.network, self.vocab, ids, k)

    def neighbors(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The k other words nearest to a word, with the cosine of their embeddings."""
        checked_value("k", k, int, low=1)
        word = self._as_known(word)
        if word not in self.vocab.ids:
            raise DataError(
                f"{word!r} is not among the {len(self.vocab):,} words of this model's vocabulary"
            )
        embedding = np.asarray(self.params["embedding"])
        unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
        cosine = unit @ unit[self.vocab.ids[word]]
        cosine[self.vocab.ids[word]] = -np.inf
        nearest = np.argsort(-cosine, kind="stable")[: min(k, len(self.vocab) - 1)]
        return [(self.vocab.words[i], float(cosine[i])) for i in nearest]

    def _as_known(self, word: str) -> str:
        """The name of a token as given, which may be <0x0A>, or else in the model's case."""
        if checked_value("word", word, str) in self.vocab.ids:
            return word
        return self.cased(word)

    def scorer(self, context: str = "sentence", *, full: bool = True, **options: Any) -> Scoring:
        """A scoring of sentences: each by itself, or one after the other with the state passed on.

        Args:
            context: "sentence" or "stream".
            full: whether to find entropy and rank.
            **options: `top_k`, `protocol`, `data_dir`, `boundary` and `punctuation` of `SurprisalOptions`.

        The scoring raises Diverged where dynamic evaluation learnt at too high a rate.
        """
        how = SurprisalOptions(context=context, **options)
        protocol = protocol_of(how.protocol)
        detail = Detail(how.top_k, full)
        reader = self.reader_of(protocol, None, how.data_dir, self._network(how))
        read = (
            OneStream(reader, detail)
            if context == "stream"
            else partial(each_sentence, reader, detail)
        )

        def scoring(sentences: Sequence[np.ndarray]) -> TokenScores:
            scores = read(sentences)
            check_converged(
                protocol, "the sentences", scores.nats.sum(dtype=float), len(scores.nats)
            )
            return scores

        return scoring

    def _network(self, how: SurprisalOptions) -> Network:
        """The network, which also scores the boundaries of words where they are to be corrected."""
        boundaries = self.sentence_reader(how).boundaries if how.boundary == "corrected" else None
        return self.network._replace(begins=boundaries and jnp.asarray(boundaries.begins))

    def adaptive(self, rate: float, **options: Any) -> AdaptiveScoring:
        """A `scoring` for `surprisal_stream` that takes a step of SGD after each sentence; its `params` are adapted.

        Args:
            rate: learning rate.
            **options: `context`, `top_k`, `boundary` and `punctuation` of `SurprisalOptions`.

        Raises:
            JaxlmError: the rate is not above 0, or there is a protocol.
        """
        how = SurprisalOptions(**options)
        if PROTOCOLS.name_of(protocol_of(how.protocol)) != "plain":
            raise JaxlmError("a model learns from its own probabilities: leave the protocol out")
        return AdaptiveScoring(self._network(how), rate, how.context == "stream", Detail(how.top_k))

    def surprisal(self, sentences: Iterable[Sentence], **options: Any) -> Surprisals:
        """The surprisal of every word, with entropy, entropy reduction and rank, as plain arrays.

        Args:
            sentences: lines, or lists of words; the first word of each is predicted from `<eos>`.
            **options: fields of `SurprisalOptions`, as in `context="stream"`.

        Raises:
            DataError: there are no sentences, one has no words, or an unknown word is refused.
            JaxlmError: an option is none of the choices.

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
        """`surprisal` of an iterator of any length in constant memory: a table for each block of sentences.

        Options are also what `scored` takes. With the context "stream" sentences may be empty.
        """
        return (table for _, _, table in self.scored(sentences, **options))

    def word_surprisal(self, sentences: Iterable[Sentence], **options: Any) -> WordSurprisals:
        """The surprisal of every displayed word (one with white space around it), its pieces summed.

        Args:
            sentences: lines.
            **options: fields of `SurprisalOptions` except `top_k`; what `scored` takes; and `regions`, a list for each
                sentence of the texts that make up its words, to sum over in place of words.

        Raises:
            DataError: there are no sentences, one has no piece, or regions do not tile the sentences.
        """
        return WordSurprisals.joined(self.word_surprisal_stream(sentences, **options))

    def word_surprisal_stream(
        self,
        sentences: Iterable[Sentence],
        *,
        regions: Sequence[Sequence[str]] | None = None,
        **options: Any,
    ) -> Iterator[WordSurprisals]:
        """`word_surprisal` of an iterator of any length in constant memory, as `surprisal_stream` has it."""
        where = options.get("where", "sentence {}".format)
        eos = options.get("eos", False)
        left = iter(regions or ())
        for first, encoded, table in self.scored(sentences, **options):
            if regions is not None:
                encoded = [
                    in_regions(one, next(left, ()), where(at))
                    for at, one in enumerate(encoded, first)
                ]
            yield by_word(table, encoded, first, eos)
        more = [*left]
        if more:
            raise DataError(
                f"regions has {len(more)} lists more than sentences has lines: give one for each line"
            )

    def scored(
        self,
        sentences: Iterable[Sentence],
        *,
        block: int = BLOCK,
        first: int = 1,
        scoring: Scoring | None = None,
        where: Callable[[int], str] = "sentence {}".format,
        **options: Any,
    ) -> Iterator[tuple[int, list[Encoded], Surprisals]]:
        """The number of the first sentence of each block, how its sentences are read, and the table of their tokens.

        Args:
            block: sentences that are read together.
            first: number of the first sentence.
            scoring: of `scorer` or `adaptive`, continued from its state (default: a new `scorer`).
            where: names a sentence, given its number from 1, in an error.
            **options: fields of `SurprisalOptions`.
        """
        how = SurprisalOptions(**options)
        scoring = scoring or self.scorer(**options)
        if isinstance(sentences, str | bytes) or not isinstance(sentences, Iterable):
            raise JaxlmError(f"sentences must be a list of lines; it is {sentences!r:.80}")
        checked_value("block", block, int, low=1)
        read = self.sentence_reader(how)
        for part in blocks(sentences, block):
            encoded = []
            for number, sentence in enumerate(part, first):
                found = read(sentence, how.oov, where(number))
                if len(found.words) == len(found.tokens):  # (in the case as given)
                    pairs = zip(found.words, found.tokens, strict=True)
                    found = replace(
                        found,
                        tokens=tuple(
                            one if one.lower() == token else token for one, token in pairs
                        ),
                    )
                encoded.append(found)
            yield (
                first,
                encoded,
                surprisals(scoring([one.ids for one in encoded]), self.vocab, encoded, how, first),
            )
            first += len(part)

    def sentence_reader(self, how: SurprisalOptions) -> SentenceReader:
        """How sentences are read."""
        lowercase = self.config.data.lowercase
        blank = how.context == "stream"
        split = self.tokenizer(how.tokenizer)
        return SentenceReader(
            self.vocab, lowercase, self.line_as_read, split, how.punctuation, blank
        )

    def states(
        self, words: Sentence, *, tokenizer: str | None = None, where: str = "the sentence"
    ) -> dict[str, np.ndarray]:
        """The state of every layer after each of N words of a sentence: arrays [N, ...] by name, as in `lstm.0.c`.

        `<eos>` is read first, as for surprisal. Raises DataError, whose message begins with `where`, if a word is
        refused or there is none.
        """
        found = self.sentence_reader(SurprisalOptions(tokenizer=tokenizer))(words, "unk", where)
        kind = self.config.kinds["model"]
        ids = found.ids[:-1]
        arrays = {}
        after = carries(
            self.network, np.pad(ids, (0, -len(ids) % FREE))
        )  # so that few lengths are compiled
        for path, leaf in jax.tree_util.tree_leaves_with_path(after):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            name = name if "." in name else f"{name}.h"  # of a layer whose carry is one array
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
            pairs: files of JSON lines, or pairs.
            oov: unknown words are read as `<unk>` ("unk") or refused ("error"); "filter" leaves out pairs that differ
                in unknown words only.
            eos: whether the `<eos>` after the last word is a part of the sentence.
            **options: `tokenizer`, `boundary`, `punctuation`, `protocol` and `data_dir` of `SurprisalOptions`.

        Raises:
            DataError: a file is malformed, or an unknown word is refused.
        """
        found = read_pairs([pairs] if isinstance(pairs, str | Path) else pairs)
        read = self.sentence_reader(SurprisalOptions(**options))
        return score_pairs(self.scorer("sentence", full=False, **options), read, found, oov, eos)

    def syntaxgym(
        self, suite: str | Path | Suite, *, oov: str = "unk", **options: Any
    ) -> SuiteResult:
        """Results of a SyntaxGym test suite.

        Args:
            suite: its JSON file, or what `read_suite` made of it.
            oov: unknown words are read as `<unk>` ("unk") or refused ("error").
            **options: as `minimal_pairs` takes them.

        Raises:
            DataError: the suite is malformed, or an unknown word is refused.
        """
        found = suite if isinstance(suite, Suite) else read_suite(suite)
        read = self.sentence_reader(SurprisalOptions(**options))
        return score_suite(self.scorer("sentence", full=False, **options), read, found, oov)

    def generate(
        self,
        prompt: Sentence = (),
        *,
        words: int = 100,
        samples: int = 1,
        seed: int = 0,
        stop: str = "none",
        beam: int | None = None,
        **sampling: Any,
    ) -> list[Text]:
        """Texts that continue a prompt, all in one compiled loop.

        Args:
            prompt: a text or words; unknown words are read as `<unk>`.
            words: most words of each text.
            seed: of all texts: a sample is the same alone and among many.
            stop: "eos" ends a text at its first `<eos>`; "none" does not.
            beam: in place of sampling, search for the most probable text, keeping so many at each word.
            **sampling: `temperature`, `top_k`, `top_p`, `min_p` and `repetition_penalty` of `Sampling`; `ban`, words
                that never come; `no_unk`, so that `<unk>` never comes.

        Raises:
            JaxlmError: a number is outside its limits, options contradict each other, or a banned word is unknown.

        >>> import jaxlm
        >>> lm = jaxlm.load("runs/tiny")
        >>> texts = lm.generate("the bank", words=5, samples=2, top_p=0.9, ban=["<eos>"])
        >>> [len(text.words) for text in texts], texts[0].log_probs.shape
        ([5, 5], (5,))
        >>> str(lm.generate("the bank", words=5)[0]) == str(lm.generate("the bank", words=5, samples=3)[0])
        True
        """
        checked_value("words", words, int, low=1)
        how, ids, end = self._begun(prompt, stop, **sampling)
        if beam is None:
            parts = generation.drawn(
                self.network, how, ids, words=words, end=end, samples=samples, seed=seed
            )
            return generation.texts_of(self.vocab, *map(np.concatenate, zip(*parts, strict=True)))
        neutral = {"samples": 1, "seed": 0, "temperature": 1.0}
        drawing = {"samples": samples, "seed": seed, **sampling}.items()
        wrong = [
            name
            for name, value in drawing
            if name not in ("ban", "no_unk") and value != neutral.get(name)
        ]
        if wrong:
            raise JaxlmError(
                f"beam searches for the most probable text and draws nothing, and {wrong[0]} is given: leave one out"
            )
        return [
            generation.beam_search(
                self.network, self.vocab, how, ids, words=words, beam=beam, end=end
            )
        ]

    def stream(
        self,
        prompt: Sentence = (),
        *,
        words: int | None = None,
        seed: int = 0,
        stop: str = "none",
        **sampling: Any,
    ) -> Iterator[tuple[str, float]]:
        """The first text of `generate`, word by word with log-probabilities in nats; without `words` it has no end."""
        how, ids, end = self._begun(prompt, stop, **sampling)
        parts = generation.drawn(self.network, how, ids, words=words, end=end, samples=1, seed=seed)
        for tokens, log_probs in parts:
            for token, log_p in zip(tokens[:, 0].tolist(), log_probs[:, 0].tolist(), strict=True):
                if token >= 0:
                    yield self.vocab.words[token], log_p

    def _begun(self, prompt: Sentence, stop: str, ban: Iterable[str] = (), **options: Any) -> tuple:
        """How to sample, the ids of `<eos>` and the prompt, and the id that ends a text (-1: none)."""
        checked_value("stop", stop, str, choices=("eos", "none"))
        if stop == "eos" and self.vocab.newline_id < 0:
            raise JaxlmError(
                "stop eos ends a text at a newline, and this model's training text had none: leave it out"
            )
        ban = [ban] if isinstance(ban, str) else ban
        how = sampling_of(self.vocab, ban=map(self._as_known, ban), **options)
        end = self.vocab.eos
        found = encode(
            self.vocab,
            self.tokens(prompt),
            "unk",
            "the prompt",
            self.config.data.lowercase,
            blank=True,
        )
        return how, found.ids[:-1], end if stop == "eos" else -1
