"""ops/sampled_softmax.py: equal to its plain reference and, with all words, to the softmax;
its sums are unbiased.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import BASE, B, T, V, begun
from test_softmax import draw

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.data.corpus import Corpus
from jaxlm.data.vocab import Vocab
from jaxlm.models.noise import Noise, draw_noise
from jaxlm.ops import softmax
from jaxlm.ops.sampled_softmax import (
    Drawn,
    draw_words,
    inclusion,
    summed_nats,
    summed_nats_reference,
)
from jaxlm.training.gradient import minimised

N = 7
H = 4
WORDS = 23


drawn_words = jax.jit(draw_words, static_argnums=(1, 2))  # op by op, each op would be a program


def with_gradients(op):
    return jax.jit(jax.value_and_grad(lambda *args: 3 * op(*args), argnums=(0, 1, 2)))


fast, plain, full = (
    with_gradients(op) for op in (summed_nats, summed_nats_reference, softmax.summed_nats)
)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=3e-5, atol=3e-5), a, b)


@pytest.mark.parametrize(
    "chunk_bytes", [64, 2**20]
)  # several chunks, of which the last is padded; one
def test_equals_the_reference(chunk_bytes, monkeypatch):
    monkeypatch.setattr(softmax, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(softmax, "LEAST_ROWS", 2)
    op = with_gradients(summed_nats)

    @settings(max_examples=10)
    @given(st.integers(0, 99), st.floats(0, 1, exclude_max=True))
    def with_values(seed, offset):
        given = draw(N, H, WORDS, jnp.float32, seed)
        drawn = drawn_words(jnp.float32(offset), WORDS, 9)
        close(op(*given, drawn), plain(*given, drawn))

    with_values()


def test_with_all_words_it_is_the_softmax_and_where_exact_whatever_was_drawn():
    given = draw(N, H, WORDS, jnp.float32)
    close(fast(*given, drawn_words(jnp.float32(0.3), WORDS, WORDS + 5)), full(*given))
    drawn = drawn_words(jnp.float32(0.3), WORDS, 5)
    close(fast(*given, drawn, True), full(*given))
    assert float(fast(*given, drawn, False)[0]) != pytest.approx(float(full(*given)[0]), rel=1e-3)


def test_a_target_far_above_all_words_drawn_stays_finite():
    x, kernel, bias, _, weights = draw(N, H, WORDS, jnp.float32)
    drawn = drawn_words(jnp.float32(0.3), WORDS, 5)
    assert WORDS - 1 not in drawn.ids.tolist()
    nats, gradients = fast(
        x, kernel, bias.at[WORDS - 1].add(200), jnp.full(N, WORDS - 1), weights, drawn, False
    )
    assert abs(float(nats)) < 1e-6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_bfloat16_is_near_float32():
    x, kernel, bias, *rest = draw(N, 32, WORDS, jnp.float32)
    drawn = drawn_words(jnp.float32(0.3), WORDS, 9)
    narrow, wide = (
        fast(x.astype(dtype), kernel / 8, bias, *rest, drawn)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert [leaf.dtype for leaf in narrow[1]] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert np.abs(np.asarray(a, np.float32) - b).max() < 0.03 * np.abs(b).max()


@given(st.integers(2, 300), st.integers(1, 300))
def test_each_word_has_its_odds_and_none_is_drawn_twice(vocabulary, count):
    odds = inclusion(vocabulary, count)
    assert odds.sum() == pytest.approx(min(count, vocabulary))
    assert (np.diff(odds) <= 0).all() and odds.min() > 0 and odds.max() <= 1


def test_of_many_words_each_is_drawn_as_an_exact_sum_of_the_odds_says():
    odds = inclusion(V := 1 << 20, S := 1 << 14)
    offset = np.float32(0.3)  # float32 has steps of 2**-10 at 2**14
    exact = np.searchsorted(np.cumsum(odds)[:-1], np.arange(S) + float(offset), side="right")
    np.testing.assert_array_equal(drawn_words(jnp.asarray(offset), V, S).ids, exact)


@pytest.mark.parametrize(("vocabulary", "count"), [(23, 9), (50, 1), (10, 9), (6, 6)])
def test_over_all_offsets_each_word_is_drawn_as_often_as_its_odds_say(vocabulary, count):
    offsets = (jnp.arange(4000) + 0.5) / 4000
    drawn: Drawn = jax.vmap(lambda offset: drawn_words(offset, vocabulary, count))(offsets)
    ids = np.asarray(drawn.ids)
    odds = inclusion(vocabulary, count)
    assert (np.diff(np.sort(ids, 1), axis=1) > 0).all()
    np.testing.assert_allclose(
        np.bincount(ids.ravel(), minlength=vocabulary) / 4000, odds, atol=1e-3
    )
    np.testing.assert_allclose(np.exp(drawn.log_weights), 1 / odds[ids], rtol=1e-5)


@given(st.integers(0, 99), st.floats(0, 1, exclude_max=True, width=32))
def test_ranks_say_which_words_are_drawn(seed, offset):
    ranked = np.random.default_rng(seed).permutation(WORDS)
    by_id = drawn_words(jnp.float32(offset), WORDS, 9)
    by_rank = drawn_words(jnp.float32(offset), WORDS, 9, ranked)
    np.testing.assert_array_equal(by_rank.ids, ranked[by_id.ids])
    np.testing.assert_array_equal(by_rank.log_weights, by_id.log_weights)


def corpus_of(ranked):
    """A text whose word of rank r occurs WORDS - r times, and has the id `ranked[r]`."""
    ranks = np.repeat(np.arange(WORDS), np.arange(WORDS, 0, -1))
    ids = ranked[np.random.default_rng(0).permutation(ranks)]
    words = tuple(f"w{rank}" for rank in np.argsort(ranked))
    return Corpus("ranks", "", Vocab(words), ids, ids[:60], ids[:60], "0" * 64)


@pytest.mark.parametrize("small_batch", [0, 2])
def test_in_whatever_order_ids_are_the_frequent_words_are_drawn(small_batch):
    """The pieces of a BPE are in another order than that of frequency: letters come last.

    From zeros only the softmax's bias is trained, so that all words differ by their place alone.
    """
    config = BASE.replace(
        vocab_size=WORDS, sampled_words=6, init_scale=0, small_batch=small_batch, epochs=1
    )
    in_order, backwards = (corpus_of(np.arange(WORDS)[::step]) for step in (1, -1))
    expected, found = (jaxlm.train(config, text, quiet=True) for text in (in_order, backwards))
    assert found.epochs[0].train_perplexity == pytest.approx(
        expected.epochs[0].train_perplexity, rel=1e-5
    )
    assert found.test_perplexity == pytest.approx(expected.test_perplexity, rel=1e-5)
    sweep = jaxlm.sweep(config, {"seed": [0, 1]}, corpus=backwards, quiet=True, workers=1)
    member = next(member for member in sweep.members if member.seed == 0)
    assert member.test_perplexity == pytest.approx(expected.test_perplexity, rel=1e-5)


def test_a_window_draws_its_own_words_until_its_epochs_are_over_and_evaluation_none():
    config = BASE.replace(sampled_words=4)
    state = begun(config.recipe, jax.random.key(0), B)
    key = state.key
    assert key is not None and Noise().drawn is None
    draw = jax.jit(lambda step: draw_noise(config.model, jax.random.fold_in(key, step), T, B))
    noise = [draw(step) for step in range(2)]
    first, second = (one.drawn for one in noise)
    assert first is not None and second is not None and len(first.ids) == 4
    assert np.any(first.log_weights != second.log_weights)
    tokens = jax.device_put(np.random.default_rng(0).integers(0, V, (T + 1, B)))

    @jax.jit
    def cost(noise, exact=False):
        window = (tokens[:-1], tokens[1:], state.carry)
        return minimised(config.recipe, state.params, noise, *window, exact=exact)[1][0]

    everything = float(cost(Noise()))
    assert cost(noise[0]) != pytest.approx(everything, rel=1e-4)
    assert cost(noise[0], exact=True) == pytest.approx(everything, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sampled_words": 5, "experts": 3}, ("sampled_words", "experts")),
        ({"sampled_share": 0.5}, ("sampled_share", "sampled_words")),
    ],
)
def test_what_means_nothing_is_refused_by_both_names(fields, named):
    with pytest.raises(JaxlmError) as refused:
        BASE.replace(**fields)
    assert all(name in str(refused.value) for name in named)
