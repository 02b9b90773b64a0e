"""A model with its parameters, the scores of tokens, and what a way of reading a text must define.

Nats, entropy, rank and likelier words are found without ever holding logits [T * B, V].

Letters: `N` tokens, `K` likeliest words, `T` steps, `B` batch, `R` rows of a chunk, `H` width, `V`
vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxlm.models import heads, stack
from jaxlm.models.noise import Noise, drop_words
from jaxlm.models.recurrent import Params, Recurrent
from jaxlm.models.stack import Carry
from jaxlm.ops.devices import by_platform

# The least sum of odds of tokens that begin a word, so that nats are finite where none can begin.
TINY = 1e-37
# Where ln of the sum of odds is within +-NEAR, the entropy loses no digit.
NEAR = 20.0
# Rows R of a chunk, whose logits [R, V] exist at a time. On a CPU they stay in its cache.
ROWS = 128
ACCELERATOR_ROWS = 1024
MOST_SENTENCES = 64  # that are read side by side


class Network(NamedTuple):
    """A model and its parameters, as a pytree.

    Attributes:
        model: The model section of a config.
        params: Its parameters.
        begins: Which tokens begin a word, bool [V]; None: the boundaries of words are not scored.
    """

    model: Recurrent
    params: Params
    begins: Array | None = None

    def with_boundaries(self, begins: Array) -> "Network":
        """The network, which also scores where words begin: at the tokens `begins` [V]."""
        return self._replace(begins=begins)

    @property
    def learnt(self) -> Params:
        """The parameters that dynamic evaluation changes: all."""
        return self.params

    def with_learnt(self, learnt: Params) -> "Network":
        """The network with other parameters."""
        return self._replace(params=learnt)

    def carry(self, rows: int = 1) -> Carry:
        """The carry before the first token of B rows: zeros."""
        return stack.zero_carry(self.model, rows, self.params["embedding"].dtype)

    def features(
        self,
        tokens: Array,
        carry: Carry,
        noise: Noise | None = None,
        length: Array | None = None,
    ) -> tuple[Array, Carry]:
        """Runs the layers over some tokens.

        Args:
            tokens: Ids, int32 [T, B].
            carry: The carry before them.
            noise: What is dropped; None: nothing.
            length: Steps that count, an int32 scalar; None: all T.

        Returns:
            The outputs of the last layer [T, B, H], and the carry after the last step that counts.
        """
        model = stack.exact(self.model)
        noise = noise or Noise()
        x = drop_words(model, noise, stack.embed(self.params, tokens), tokens)
        return stack.features(model, self.params, noise, x, carry, length)

    def outputs(self, features: Array) -> Array:
        """The outputs of the last layer among the features, which are nothing else here."""
        return features

    def logits(self, features: Array, noise: Noise | None = None) -> Array:
        """The logits of a few rows of features; of a mixture of softmaxes, log p.

        Args:
            features: Outputs of the last layer [..., H].
            noise: What is dropped; None: nothing.

        Returns:
            Logits [..., V].
        """
        return heads.logits(self.model, self.params, features, noise and noise.latents)

    def token_nats(
        self,
        features: Array,
        targets: Array,
        noise: Noise | None = None,
    ) -> Array:
        """The nats of each target, never holding logits [T, B, V].

        Args:
            features: Outputs of the last layer before each target [T, B, H].
            targets: Ids, int32 [T, B].
            noise: What is dropped; None: nothing.

        Returns:
            -log p of each target, float32 [T, B].
        """
        return heads.token_nats(self.model, self.params, features, targets, noise and noise.latents)

    def summed_nats(
        self,
        features: Array,
        targets: Array,
        weights: Array,
    ) -> Array:
        """The weighted sum of the nats of the targets, whose gradient is cheap.

        Args:
            features: Outputs of the last layer before each target [T, B, H].
            targets: Ids, int32 [T, B].
            weights: Of each target [T, B].
        """
        weights = weights.astype(features.dtype)
        return heads.summed_nats(self.model, self.params, features, targets, weights)


class Tokens(NamedTuple):
    """A segment of tokens, [T] of one text or [T, B] of B texts.

    Attributes:
        inputs: Ids that are read.
        targets: Ids to predict.
        counted: Whether each target counts; padding does not.
    """

    inputs: Array
    targets: Array
    counted: Array


def read_and_predicted(ids: np.ndarray) -> np.ndarray:
    """Ids [n + 1] -> int32 [3, n]: inputs, targets, and 1 where a token counts (padding is 0)."""
    return np.stack([ids[:-1], ids[1:], np.ones(len(ids) - 1)]).astype(np.int32)


class TokenScores(NamedTuple):
    """The scores of N tokens, each given the tokens before it; NumPy's arrays or JAX's.

    Attributes:
        nats: -log p of the token, float32 [N].
        entropy: Entropy of the distribution that predicts the token, in nats, float32 [N].
        rank: 1 where no word is more probable than the token, int32 [N].
        top: Ids of the K most probable words, int32 [N, K].
        top_nats: -log p of the words `top`, float32 [N, K].
        boundary: -log p that the token begins a word or ends the line, float32 [N]; 0 where it is
            not asked for.
    """

    nats: Any
    entropy: Any
    rank: Any
    top: Any
    top_nats: Any
    boundary: Any

    def rows(self, rows: Any) -> "TokenScores":
        """Some of the scores, as NumPy's arrays; `rows` is an index of NumPy."""
        return TokenScores(*(np.asarray(column)[rows] for column in self))

    @staticmethod
    def joined(parts: "Sequence[TokenScores]") -> "TokenScores":
        """The parts one after the other, as NumPy's arrays."""
        return TokenScores(*map(np.concatenate, zip(*parts, strict=True)))


# From sentences of ids [n + 1], n >= 1, to the scores of every token but the first of each, one
# sentence after another; a scoring may remember earlier calls.
Scoring = Callable[[Sequence[np.ndarray]], TokenScores]


class Detail(NamedTuple):
    """How much to find of each token.

    Attributes:
        top: How many of the likeliest words.
        full: Whether entropy and rank are found beside the nats.
    """

    top: int = 0
    full: bool = True


NATS_ALONE = Detail(full=False)


def nats_alone(nats: Array) -> TokenScores:
    """Scores of which only the nats [N, ...] are known; the other columns are zero or empty."""
    none = jnp.zeros((*nats.shape, 0))
    zeros = jnp.zeros_like(nats)
    return TokenScores(nats, zeros, zeros.astype(jnp.int32), none.astype(jnp.int32), none, zeros)


class Reader:
    """How a model reads a text, segment by segment.

    A state before the first token, and a pure function from a state and tokens to nats and the next
    state. A subclass is a pytree, so that a program takes it.

    A model that is no network (an n-gram) plugs in here. It defines `start` and `read` for one
    text, or `start_all` and `read_all` for B texts side by side, and is what
    `LanguageModel.reader_of` returns. Perplexity, evaluation, surprisal, minimal pairs and test
    suites ask a model for nothing else.

    Attributes:
        segment: Tokens T that must be read together; None: any number.
        most_sentences: The most sentences that may be read side by side.
    """

    segment: Any = None
    most_sentences: Any = MOST_SENTENCES

    def sized_for(self, tokens: int) -> "Reader":
        """This reader, with no more memory than texts of `tokens` tokens need."""
        return self

    def start(self) -> Any:
        """The state before the first token: a pytree of arrays of fixed shapes."""
        raise NotImplementedError

    def read(
        self,
        state: Any,
        tokens: Tokens,
        detail: Detail,
    ) -> tuple[TokenScores, Any]:
        """Reads one segment of one text.

        Args:
            state: The state before the segment.
            tokens: The segment [T].
            detail: How much to find of each token.

        Returns:
            The scores [T], and the state after the segment.
        """
        raise NotImplementedError

    def start_all(self, texts: int) -> Any:
        """The state of B texts before the first token; every leaf has a first axis B."""
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (texts, *jnp.shape(leaf))), self.start()
        )

    def read_all(
        self,
        state: Any,
        tokens: Tokens,
        detail: Detail,
    ) -> tuple[TokenScores, Any]:
        """Reads one segment of B texts.

        Args:
            state: The state before the segment.
            tokens: The segment [T, B].
            detail: How much to find of each token.

        Returns:
            The scores [T, B, ...], and the state after the segment.
        """
        if tokens.inputs.shape[1] > 1:
            return jax.vmap(partial(self.read, detail=detail), (0, 1), (1, 0))(state, tokens)
        state = jax.tree.map(lambda leaf: leaf[0], state)
        scores, state = self.read(state, jax.tree.map(lambda ids: ids[:, 0], tokens), detail)
        scores = jax.tree.map(lambda leaf: leaf[:, None], scores)
        return scores, jax.tree.map(lambda leaf: leaf[None], state)

    def nats_of_all(self, state: Any, tokens: Tokens) -> tuple[Array, Any]:
        """The nats [T, B] of `read_all` alone, in the fastest way, and the state after the segment.

        Args:
            state: The state before the segment.
            tokens: The segment [T, B].
        """
        scores, state = self.read_all(state, tokens, NATS_ALONE)
        return scores.nats, state


def own_scores(
    network: Network,
    features: Any,
    tokens: Tokens,
    detail: Detail,
    temperature: Any = None,
) -> TokenScores:
    """The scores of tokens by the model's own softmax.

    R rows are scored at a time; R rows of which no target counts are skipped.

    Args:
        network: The model and its parameters.
        features: What `network.features` returns [T, B, ...].
        tokens: The tokens [T, B].
        detail: How much to find.
        temperature: Divides the logits; None: 1.

    Returns:
        Scores with leading axes [T, B].
    """
    shape = tokens.targets.shape
    N = tokens.targets.size

    def in_chunks(
        on_cpu: bool,
        network: Network,
        temperature: Any,
        *columns: Any,
    ) -> TokenScores:
        R = min(N, ROWS if on_cpu else ACCELERATOR_ROWS)

        def score(rows: Any, ids: Array) -> TokenScores:
            logits = network.logits(rows)
            if temperature is not None:
                logits = logits / temperature
            return score_logits(logits, ids, detail, network.begins)

        def score_chunk(chunk: tuple[Any, ...]) -> TokenScores:
            rows, ids, counted = chunk
            shapes = jax.eval_shape(score, rows, ids)
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            return lax.cond(counted.any(), score, lambda *_: zeros, rows, ids)

        def chunks_of(column: Array) -> Array:
            rows = merged(column)
            rows = jnp.pad(rows, ((0, -N % R), *((0, 0),) * (rows.ndim - 1)))
            return rows.reshape(-1, R, *rows.shape[1:])

        scores = lax.map(score_chunk, jax.tree.map(chunks_of, columns))
        return jax.tree.map(lambda leaf: merged(leaf)[:N].reshape(*shape, *leaf.shape[2:]), scores)

    return by_platform(in_chunks, network, temperature, features, tokens.targets, tokens.counted)


def merged(array: Array) -> Array:
    """The array with its first two axes as one."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def score_logits(
    logits: Array,
    targets: Array,
    detail: Detail,
    begins: Array | None = None,
) -> TokenScores:
    """The scores of tokens, given logits, which need not be normalised.

    Args:
        logits: Logits [R, V].
        targets: Ids, int32 [R].
        detail: How much to find.
        begins: Which tokens begin a word, bool [V]; None: boundaries are not scored.

    Returns:
        Scores [R].
    """
    picked = jnp.take_along_axis(logits, targets[:, None], 1)
    odds = jnp.exp(logits)
    total = odds.sum(1)

    def scores(
        logits: Array,
        odds: Array,
        total: Array,
        picked: Array,
    ) -> TokenScores:
        log_total = jnp.log(total)
        entropy = rank = boundary = jnp.zeros(len(targets))
        values = ids = jnp.zeros((len(targets), 0))
        if detail.full:
            entropy = log_total - (odds * logits).sum(1) / total
            # A sum of floats is faster than one of whole numbers.
            rank = 1 + jnp.where(logits > picked, 1.0, 0.0).sum(1)
        if begins is not None:
            boundary = log_total - jnp.log(jnp.maximum(jnp.where(begins, odds, 0).sum(1), TINY))
        if detail.top:
            values, ids = lax.top_k(logits, min(detail.top, logits.shape[1]))
        nats = log_total - picked[:, 0]
        top_nats = log_total[:, None] - values
        return TokenScores(
            nats, entropy, rank.astype(jnp.int32), ids.astype(jnp.int32), top_nats, boundary
        )

    def far_from_zero() -> TokenScores:
        highest = logits.max(1, keepdims=True)
        shifted = logits - highest
        odds = jnp.exp(shifted)
        return scores(shifted, odds, odds.sum(1), picked - highest)

    # Most models' logits are near 0: subtracting the highest would read all logits once more.
    near = (jnp.abs(jnp.log(total)) < NEAR).all()
    return lax.cond(near, lambda: scores(logits, odds, total, picked), far_from_zero)
