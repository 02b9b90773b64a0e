"""A trained model as an object: perplexity, surprisal, minimal pairs, text and more, in one line each."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path

import numpy as np

from jaxlm.config.config import Config
from jaxlm.config.protocols import Dynamic, Plain, protocol_of
from jaxlm.data.corpora import Corpus, load_corpus, reload_corpus
from jaxlm.data.text import SPLITS, read_text, tokenize
from jaxlm.data.vocab import Vocab
from jaxlm.errors import DataError, JaxlmError
from jaxlm.models.recurrent import Params
from jaxlm.report.units import perplexity
from jaxlm.scoring import generation
from jaxlm.scoring.adaptation import CLIP_NORM, Adaptive
from jaxlm.scoring.beam import beam_search
from jaxlm.scoring.displayed_words import WordSurprisals, by_word
from jaxlm.scoring.dynamic_evaluation import Statistics, cost_of, gradient_statistics
from jaxlm.scoring.evaluation import Evaluation, Tuned, evaluate_ids, tried
from jaxlm.scoring.generation import Text
from jaxlm.scoring.minimal_pairs import MinimalPairs, Pair, read_pairs, score_pairs
from jaxlm.scoring.next_word import next_word
from jaxlm.scoring.protocols import Statistician, reader_of, scoring_of
from jaxlm.scoring.ptb_tokenizer import PTBTokenizer
from jaxlm.scoring.sampling import Sampling
from jaxlm.scoring.sentences import Sentence, check_choice, check_several, encode, split
from jaxlm.scoring.states import layer_states
from jaxlm.scoring.stream import stream_nats
from jaxlm.scoring.surprisal import BLOCK, CONTEXTS, Surprisals, surprisal_stream
from jaxlm.scoring.syntaxgym import Suite, SuiteResult, read_suite, score_suite
from jaxlm.scoring.token_scores import Scoring

TOKENIZERS = ("none", "ptb")


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
    _statistics: dict = field(default_factory=dict, init=False, repr=False, compare=False)  # once read

    def perplexity(self, text: str) -> float:
        """exp of the mean nats of every word of the text but the first; a newline is `<eos>`, the carry is passed on.

        Raises:
          DataError: the text has fewer than two words.
        """
        return perplexity(*stream_nats(self.config.model, self.params, self._encode(text), padded=True))

    def predict(self, text: str, k: int = 10) -> list[tuple[str, float]]:
        """The k most probable next words after the text, with their probabilities."""
        ids = self._encode(text)
        if not len(ids):
            raise DataError("there is no word to predict from: give at least one")
        p = next_word(self.config.model, self.params, ids)
        return [(self.vocab.words[i], float(p[i])) for i in np.argsort(-p, kind="stable")[: _count(k)]]

    def _cased(self, word: str) -> str:
        """A word in the case of the run's text."""
        return word.lower() if self.config.data.lowercase else word

    def neighbors(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The k words nearest to a word, with the cosine of their embeddings, the word itself left out."""
        word = self._cased(word)
        if word not in self.vocab.ids:
            raise DataError(f"{word!r} is not among the {len(self.vocab):,} words of this model's vocabulary")
        embedding = np.asarray(self.params["embedding"])
        unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
        cosine = unit @ unit[self.vocab.ids[word]]
        cosine[self.vocab.ids[word]] = -np.inf
        nearest = np.argsort(-cosine, kind="stable")[: min(_count(k), len(self.vocab) - 1)]
        return [(self.vocab.words[i], float(cosine[i])) for i in nearest]

    def evaluate(
        self,
        split: str = "test",
        *,
        text: str | Path | None = None,
        corpus: Corpus | str | Path | None = None,
        data_dir: str | Path | None = None,
        protocol: str | Plain | None = None,
    ) -> Evaluation:
        """A split of the run's own corpus, or a file of text at batch 1.

        Plainly an own split is read as training read it; another text, and by any other protocol, as one row.

        Args:
          split: train, valid or test.
          text: a file, in place of a split.
          corpus: the run's corpus, where it is loaded already; or what `--corpus` takes, any text, which is encoded
            with this model's vocabulary.
          data_dir: where Penn Treebank's files lie.
          protocol: a name, as in "cache", or its numbers, as in `Cache(cache_window=100)` (default: plain).

        Raises:
          DataError: the corpus is not the one trained on, or the file cannot be read.
          JaxlmError: the protocol means nothing for this text or model.
        """
        protocol = protocol_of(protocol)
        if text is not None:
            ids = self.vocab.encode(read_text(text, self.config.data.lowercase))
            return evaluate_ids(self.config, self.params, ids, str(text), protocol, self._statistician(None, data_dir))
        if split not in SPLITS:
            raise JaxlmError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        found = self._find(corpus, data_dir)
        own = not isinstance(corpus, str | Path) and split != "test"
        how = (self.config.train.batch_size, self.config.train.bptt_length) if own else (1, 1)
        return self._evaluate_split(found, split, protocol, how)

    def tune(
        self,
        protocol: str | Plain,
        *,
        grid: Mapping[str, Sequence[float]] | None = None,
        corpus: Corpus | str | Path | None = None,
        data_dir: str | Path | None = None,
    ) -> Tuned:
        """Chooses a protocol's numbers on valid; then reads test, once.

        Args:
          protocol: whose other numbers stay as they are.
          grid: values to try, by field (default: the protocol's `grid`).
          corpus, data_dir: as `evaluate` takes them.

        Raises:
          JaxlmError: there is nothing to tune, or the protocol means nothing for this text or model.
        """
        found = self._find(corpus, data_dir)
        results = tried(
            self.config,
            self.params,
            found.valid,
            f"{found.name} valid",
            protocol_of(protocol),
            self._statistician(found),
            grid,
        )
        best, valid = results[0]
        return Tuned(best, valid, results, self._evaluate_split(found, "test", best))

    def _evaluate_split(self, corpus: Corpus, split: str, protocol: Plain, how: tuple[int, int] = (1, 1)) -> Evaluation:
        return evaluate_ids(
            self.config,
            self.params,
            getattr(corpus, split),
            f"{corpus.name} {split}",
            protocol,
            self._statistician(corpus),
            how,
        )

    def _find(self, corpus: Corpus | str | Path | None, data_dir: str | Path | None) -> Corpus:
        """A corpus of any text by its name, or the run's own."""
        if isinstance(corpus, str | Path):
            return load_corpus(corpus, data_dir=data_dir, lowercase=self.config.data.lowercase, vocab=self.vocab)
        corpus = reload_corpus(self.config.data, self.vocab, data_dir) if corpus is None else corpus
        self._check_own(corpus)
        return corpus

    def _statistician(self, corpus: Corpus | None, data_dir: str | Path | None = None) -> Statistician:
        """Reads the train split of a corpus (default: the run's own), once for each way to read it."""

        def statistics(protocol: Dynamic) -> Statistics:
            train = self._find(None, data_dir) if corpus is None else corpus
            cost = cost_of(self.config, protocol)
            key = (train.sha256, protocol.segment_length, protocol.statistics_rows, protocol.statistics_windows, cost)
            if key not in self._statistics:
                self._statistics[key] = gradient_statistics(self.config.model, self.params, train.train, protocol, cost)
            return self._statistics[key]

        return statistics

    def _check_own(self, corpus: Corpus) -> None:
        """Raises DataError unless this model was trained on the corpus."""
        if corpus.sha256 != self.corpus["sha256"]:
            raise DataError(
                f"this model was trained on {self.corpus['name']} (sha256 {self.corpus['sha256']}), and "
                f"the corpus found is {corpus.name} ({corpus.sha256}): name its folder, or evaluate a text "
                f"file"
            )

    def surprisal(
        self,
        sentences: Iterable[Sentence],
        *,
        context: str = "sentence",
        oov: str = "unk",
        top_k: int = 0,
        unit: str = "bits",
        tokenizer: str = "none",
        eos: bool = False,
        protocol: str | Plain | None = None,
    ) -> Surprisals:
        """The surprisal of every word, with entropy, entropy reduction and rank, as plain arrays.

        Args:
            sentences: lines, or lists of words; the first word of each is predicted from `<eos>`.
            context: "sentence" begins each from a state of zeros, "stream" passes the state on.
            oov: words outside the vocabulary are read as `<unk>` ("unk"), refused ("error"), or read as `<unk>` with a
                surprisal of nan ("nan").
            top_k: also find the k likeliest words in each word's place.
            unit: of surprisal and entropy, "bits" or "nats".
            tokenizer: "none" splits lines at white space, "ptb" splits them as Penn Treebank's files are.
            eos: whether the `<eos>` that ends each sentence has a row too.
            protocol: as `scorer` takes it.

        Raises:
            DataError: there are no sentences, one has no words, or an unknown word is refused.
            JaxlmError: an argument is none of the choices.

        >>> import jaxlm
        >>> lm = jaxlm.load("runs/tiny")
        >>> table = lm.surprisal(["godu kati", "zebra"])
        >>> table.word, table.oov.tolist(), table.surprisal.shape
        (['godu', 'kati', 'zebra'], [False, False, True], (3,))
        """
        parts = list(
            self.surprisal_stream(
                sentences,
                context=context,
                oov=oov,
                top_k=top_k,
                unit=unit,
                tokenizer=tokenizer,
                eos=eos,
                scoring=self.scorer(context, top_k, protocol=protocol),
            )
        )
        if not parts:
            raise DataError("there are no sentences: give at least one")
        return Surprisals.joined(parts)

    def surprisal_stream(
        self,
        sentences: Iterable[Sentence],
        *,
        context: str = "sentence",
        oov: str = "unk",
        top_k: int = 0,
        unit: str = "bits",
        tokenizer: str = "none",
        eos: bool = False,
        block: int = BLOCK,
        first: int = 1,
        scoring: Scoring | None = None,
        where: Callable[[int], str] = "sentence {}".format,
    ) -> Iterator[Surprisals]:
        """`surprisal` of an iterator of any length in constant memory: a table for each `block` of sentences.

        Args:
            sentences, context, oov, top_k, unit, tokenizer, eos: as `surprisal` takes them.
            block: sentences that are read together.
            first: number of the first sentence.
            scoring: in place of `scorer(context, top_k)`, such as `scorer(context, top_k, protocol="cache")` or
                `adaptive(rate)`.
            where: names a sentence, given its number from 1, in an error.
        """
        check_several(sentences)
        check_choice("tokenizer", tokenizer, TOKENIZERS)
        pieces = self.tokenizer(tokenizer) if tokenizer == "ptb" else str.split  # (which keeps the case of the table)
        split_up = (pieces(line) if isinstance(line, str) else line for line in sentences)
        return surprisal_stream(
            scoring or self.scorer(context, top_k),
            self.vocab,
            split_up,
            context=context,
            oov=oov,
            unit=unit,
            eos=eos,
            block=block,
            first=first,
            where=where,
            lowercase=self.config.data.lowercase,
        )

    def word_surprisal(
        self,
        sentences: Iterable[str],
        *,
        tokenizer: str = "ptb",
        context: str = "sentence",
        oov: str = "unk",
        unit: str = "bits",
        first: int = 1,
        scoring: Scoring | None = None,
        where: Callable[[int], str] = "sentence {}".format,
    ) -> WordSurprisals:
        """The surprisal of every displayed word (one with white space around it), its pieces summed.

        Args:
            sentences: lines.
            tokenizer: what splits a displayed word into pieces.
            context, oov, unit, first, scoring, where: as `surprisal_stream` takes them.

        Raises:
            DataError: there are no sentences, or one has no piece.
        """
        check_several(sentences)
        pieces = self.tokenizer(tokenizer)
        displayed = [line.split() for line in sentences]
        split_up = [[pieces(word) for word in words] for words in displayed]
        tables = list(
            self.surprisal_stream(
                [[piece for word in sentence for piece in word] for sentence in split_up],
                context=context,
                oov=oov,
                unit=unit,
                first=first,
                scoring=scoring,
                where=where,
            )
        )
        if not tables:
            raise DataError("there are no sentences: give at least one")
        return by_word(Surprisals.joined(tables), displayed, split_up, first)

    def scorer(
        self,
        context: str = "sentence",
        top_k: int = 0,
        full: bool = True,
        *,
        protocol: str | Plain | None = None,
        data_dir: str | Path | None = None,
    ) -> Scoring:
        """How sentences become scores: each by itself, or one after the other with the state passed on.

        Args:
            context, top_k: as `surprisal` takes them. "sentence" also empties a cache and forgets what was learnt.
            full: whether to find more than the nats.
            protocol, data_dir: as `evaluate` takes them.
        """
        check_choice("context", context, CONTEXTS)
        if top_k < 0:
            raise JaxlmError(f"top_k must be at least 0; it is {top_k}")
        found = protocol_of(protocol)
        reader = (
            None
            if type(found) is Plain
            else reader_of(self.config, self.params, found, self._statistician(None, data_dir))
        )
        return scoring_of(self.config, self.params, reader, context == "stream", top_k, full)

    def adaptive(
        self, rate: float, *, context: str = "sentence", top_k: int = 0, clip_norm: float = CLIP_NORM
    ) -> Adaptive:
        """A `scoring` for `surprisal_stream` that takes a step of SGD after each sentence; its `params` are adapted.

        Args:
            rate: of learning.
            context, top_k: as `surprisal` takes them.
            clip_norm: largest global norm of a gradient.

        Raises:
            JaxlmError: the rate or the norm is not above 0.
        """
        check_choice("context", context, CONTEXTS)
        return Adaptive(
            self.config.model, self.params, rate, clip_norm=clip_norm, stream=context == "stream", top=top_k
        )

    def with_params(self, params: Params) -> "LanguageModel":
        """The same model with other parameters, such as adapted ones."""
        return replace(self, params=params)

    def tokenizer(self, name: str = "ptb") -> Callable[[str], list[str]]:
        """From a line to its words: "none" splits at white space, "ptb" as Penn Treebank's files are."""
        check_choice("tokenizer", name, TOKENIZERS)
        lowercase = self.config.data.lowercase
        return PTBTokenizer(self.vocab) if name == "ptb" else lambda line: split(line, lowercase)

    def states(self, words: Sentence) -> dict[str, np.ndarray]:
        """The state of every layer after each of N words of a sentence: arrays [N, H] by name, as in `lstm.0.c`.

        `<eos>` is read first, as for surprisal. Raises DataError where there are no words.
        """
        found = split(words, self.config.data.lowercase)
        if not found:
            raise DataError("there are no words: give at least one")
        arrays = layer_states(self.config.model, self.params, encode(self.vocab, found).ids[:-1])
        return {f"{self.config.kinds['model']}.{name}": array[1:] for name, array in arrays.items()}

    def minimal_pairs(
        self,
        pairs: str | Path | Iterable[str | Path] | Sequence[Pair],
        *,
        oov: str = "unk",
        tokenizer: str = "ptb",
        eos: bool = False,
        protocol: str | Plain | None = None,
        data_dir: str | Path | None = None,
    ) -> MinimalPairs:
        """Accuracy on minimal pairs in BLiMP's format, by UID and in all.

        Args:
            pairs: files of JSON lines, or pairs.
            oov: unknown words are read as `<unk>` ("unk") or refused ("error"); "filter" leaves out pairs that differ
                in unknown words only.
            tokenizer: "ptb" for ordinary English, "none" for words with spaces between.
            eos: whether the `<eos>` after the last word is a part of the sentence.
            protocol, data_dir: as `scorer` takes them.

        Raises:
            DataError: a file is malformed, or an unknown word is refused.
        """
        given = [pairs] if isinstance(pairs, str | Path) else list(pairs)
        found = [pair for pair in given if isinstance(pair, Pair)]
        if paths := [path for path in given if not isinstance(path, Pair)]:
            found += read_pairs(paths)
        if not found:
            raise DataError("there are no pairs: give at least one")
        scoring = self.scorer(full=False, protocol=protocol, data_dir=data_dir)
        return score_pairs(scoring, self.vocab, found, self.tokenizer(tokenizer), oov, eos)

    def syntaxgym(
        self,
        suite: str | Path | Suite,
        *,
        oov: str = "unk",
        tokenizer: str = "ptb",
        protocol: str | Plain | None = None,
        data_dir: str | Path | None = None,
    ) -> SuiteResult:
        """Results of a SyntaxGym test suite.

        Args:
            suite: its JSON file, or what `read_suite` made of it.
            oov, tokenizer, protocol, data_dir: as `minimal_pairs` takes them, but that there is no "filter".

        Raises:
            DataError: the suite is malformed, or an unknown word is refused.
        """
        read = suite if isinstance(suite, Suite) else read_suite(suite)
        scoring = self.scorer(full=False, protocol=protocol, data_dir=data_dir)
        return score_suite(scoring, self.vocab, read, self.tokenizer(tokenizer), oov)

    def generate(
        self,
        prompt: Sentence = (),
        *,
        words: int = 100,
        samples: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        ban: Iterable[str] = (),
        no_unk: bool = False,
        stop: str = "none",
        beam: int | None = None,
    ) -> list[Text]:
        """Texts that go on from a prompt, all in one compiled loop.

        Args:
            prompt: words that come before; unknown ones are read as `<unk>`.
            words: most words of each text.
            samples: how many texts.
            seed: of all of them: a sample is the same alone and among many.
            temperature: divides the logits; 0 always takes the likeliest word.
            top_k, top_p, min_p, repetition_penalty: see `Sampling`; None: absent.
            ban: words that never come.
            no_unk: `<unk>` never comes.
            stop: "eos" ends a text at its first `<eos>`; "none" goes on.
            beam: in place of sampling, search for the most probable text, keeping so many at each word.

        Raises:
            JaxlmError: a number is outside its limits, flags contradict each other, or a banned word is unknown.

        >>> import jaxlm
        >>> lm = jaxlm.load("runs/tiny")
        >>> texts = lm.generate("godu kati", words=5, samples=2, top_p=0.9, ban=["<eos>"])
        >>> [len(text.words) for text in texts], texts[0].log_probs.shape
        ([5, 5], (5,))
        >>> str(lm.generate("godu kati", words=5)[0]) == str(lm.generate("godu kati", words=5, samples=3)[0])
        True
        """
        sampling = self._sampling(temperature, top_k, top_p, min_p, repetition_penalty, ban, no_unk)
        ids = self._prompt(prompt)
        if beam is None:
            return generation.generate(
                self.config.model,
                self.params,
                self.vocab,
                ids,
                sampling,
                words=words,
                samples=samples,
                seed=seed,
                stop=stop,
            )
        given = {
            "samples": samples != 1,
            "temperature": temperature != 1,
            "top_k": top_k is not None,
            "top_p": top_p is not None,
            "min_p": min_p is not None,
            "repetition_penalty": repetition_penalty is not None,
        }
        if wrong := [name for name, there in given.items() if there]:
            raise JaxlmError(
                f"beam searches for the most probable text and draws nothing, and {wrong[0]} is given: leave one out"
            )
        return [
            beam_search(
                self.config.model,
                self.params,
                self.vocab,
                ids,
                words=words,
                beam=beam,
                banned=sampling.banned,
                stop=stop,
            )
        ]

    def stream(
        self,
        prompt: Sentence = (),
        *,
        words: int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        ban: Iterable[str] = (),
        no_unk: bool = False,
        stop: str = "none",
    ) -> Iterator[tuple[str, float]]:
        """The first text of `generate`, word by word with log-probabilities in nats; without `words` it has no end."""
        sampling = self._sampling(temperature, top_k, top_p, min_p, repetition_penalty, ban, no_unk)
        return generation.stream(
            self.config.model,
            self.params,
            self.vocab,
            self._prompt(prompt),
            sampling,
            words=words,
            seed=seed,
            stop=stop,
        )

    def unknown_words(self, prompt: Sentence) -> list[str]:
        """The words of a prompt that are not in the vocabulary, each once."""
        return generation.prompt_ids(self.vocab, self._prompt(prompt))[1]

    def _prompt(self, prompt: Sentence) -> list[str]:
        text = prompt if isinstance(prompt, str) else " ".join(prompt)
        return tokenize(text, self.config.data.lowercase)

    def _sampling(
        self,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        min_p: float | None,
        repetition_penalty: float | None,
        ban: Iterable[str],
        no_unk: bool,
    ) -> Sampling:
        return Sampling(
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            generation.banned_words(self.vocab, map(self._cased, ban), no_unk),
        ).checked()

    def _encode(self, text: str) -> np.ndarray:
        return self.vocab.encode(tokenize(text, self.config.data.lowercase))


def _count(k: int) -> int:
    if not isinstance(k, Integral):
        raise JaxlmError(f"k must be a whole number; it is {k!r:.40}")
    if k < 1:
        raise JaxlmError(f"k must be at least 1; it is {k}")
    return k
