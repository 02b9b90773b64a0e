"""Evaluation protocols: what the published codes answered, what must always hold,
and mistakes in one sentence.
"""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_models import KINDS
from language_models import small_lm as small_lm_of
from recipes import drawn_params
from recordings import recorded
from test_mogrifier import lamb_config, lamb_params

import jaxlm
from jaxlm.base.errors import DataError, Diverged, JaxlmError
from jaxlm.cli import main
from jaxlm.config.protocols import PROTOCOLS, Cache, MCDropout, Plain, protocol_of
from jaxlm.data.corpus import Corpus
from jaxlm.data.vocab import Vocab
from jaxlm.models import heads, stack
from jaxlm.models.noise import Noise, draw_noise
from jaxlm.published.lamb import LambAdam
from jaxlm.scoring import comparison, reading, stream
from jaxlm.scoring.dynamic_evaluation import DynamicReader, gradient_statistics, text_gradient
from jaxlm.scoring.evaluation import Evaluation
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.mc_dropout import MCReader
from jaxlm.scoring.neural_cache import CacheReader
from jaxlm.scoring.reading import OneStream, each_sentence
from jaxlm.scoring.stream import stream_nats
from jaxlm.scoring.token_scores import Detail, Network, Tokens

IDS = np.random.default_rng(5).integers(0, 17, 65).astype(np.int32)
TRAIN = np.random.default_rng(6).integers(0, 17, 300).astype(np.int32)
small_lm = partial(small_lm_of, layers=2)  # the state of a protocol holds all layers' carries
VOCAB = Vocab(tuple(f"w{number}" for number in range(1000)))  # for more ids than any case has
SETTINGS = {
    "cache": {"cache_window": 7, "theta": 0.6, "lambda_": 0.3},
    "dynamic": {
        "learning_rate": 2e-3,
        "lambda_": 0.02,
        "epsilon": 1e-3,
        "segment_length": 4,
        "statistics_rows": 8,
    },
    "temperature": {"temperature": 1.3},
    "mc": {"samples": 3, "seed": 4},
}
TIED = ("dynamic", "mc")  # whose model has one table for inputs and outputs
NEUTRAL = {
    "cache": {"cache_window": 7, "lambda_": 0.0},
    "dynamic": {**SETTINGS["dynamic"], "learning_rate": 0.0},
    "temperature": {"temperature": 1.0},
    "mc": {"samples": 3, "dropout_factor": 1e-9},
}


@pytest.fixture(autouse=True)
def segments(request, monkeypatch):
    """Short texts are read in the segments of short sentences, so by the same programs; a split in
    segments so long that each call has one. What was recorded is read as users read.
    """
    if "golden" not in request.keywords:
        whole_split = "run" in request.fixturenames
        monkeypatch.setattr(reading, "SEGMENT", 1024 if whole_split else reading.SHORT_SEGMENT)


def torch_model(case: dict) -> tuple[jaxlm.Config, dict]:
    """The tied model of a recorded case, from PyTorch's tensors, whose gates are i, f, g, o."""
    g = np.random.default_rng(case["weight_seed"])
    V = case["V"]
    widths = [case["emb"], *[case["hidden"]] * (case["layers"] - 1), case["emb"]]

    def draw(*shape):
        return g.uniform(-case["scale"], case["scale"], shape).astype(np.float32)

    def gates(array):
        i, f, j, o = np.split(array, 4)
        return np.concatenate([i, j, f, o]).T

    params = {"embedding": draw(V, case["emb"]), "layers": []}
    for inputs, width in pairwise(widths):
        ih = draw(4 * width, inputs)
        hh = draw(4 * width, width)
        one = draw(4 * width)
        two = draw(4 * width)
        params["layers"].append(
            {"kernel": np.concatenate([gates(ih), gates(hh)]), "bias": gates(one + two)}
        )
    params["softmax"] = {"bias": draw(V)}
    config = jaxlm.preset("small").replace(
        vocab_size=V,
        embedding_size=case["emb"],
        hidden_sizes=tuple(widths[1:]),
        tied=True,
        forget_bias=0.0,
    )
    return config, jax.tree.map(jnp.asarray, params)


def corpus_of(train: np.ndarray, test: np.ndarray) -> Corpus:
    return Corpus("a text", "of numbers", VOCAB, train, test, test, sha256="0")


def evaluated(
    config: jaxlm.Config, params: dict, train: np.ndarray, test: np.ndarray, protocol: Plain
) -> Evaluation:
    lm = LanguageModel(params, config, VOCAB, {"name": "a text", "sha256": "0"})
    return lm.evaluate(corpus=corpus_of(train, test), protocol=protocol)


def tokens(generator, n: int, V: int) -> np.ndarray:
    return (generator.random(n) ** 3 * (V - 1)).astype(np.int32)


@pytest.mark.golden
@pytest.mark.parametrize(
    "case", recorded("pointer")["cases"], ids=lambda case: f"window {case['config']['window']}"
)
def test_the_cache_is_that_of_pointer_py(case):
    told = case["config"]
    config, params = torch_model(told)
    ids = tokens(np.random.default_rng(told["token_seed"]), told["n"], told["V"])
    protocol = jaxlm.Cache(
        cache_window=told["window"],
        theta=told["theta"],
        lambda_=told["lambdasm"],
        compatibility="awd-lstm",
        cache_chunk=told["bptt"],
    )
    nats = OneStream(
        CacheReader(Network(config.model, params), protocol), Detail(full=told["window"] == 20)
    )([ids]).nats
    np.testing.assert_allclose(nats, case["nll"], rtol=1e-5)
    if told["window"] < told["n"]:
        found = evaluated(config, params, ids, ids, protocol)
        assert found.predictions == told["n"]
        np.testing.assert_allclose(np.log(found.perplexity), case["reported_loss"], rtol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize(
    "case", recorded("dynamic_eval")["cases"], ids=lambda case: f"lr {case['config']['lr']}"
)
def test_dynamic_evaluation_is_that_of_dynamiceval_py(case):
    """The code's option --oldhyper is other numbers (`used`), which a user gives as flags."""
    told = {**case["config"], **case["used"]}
    expected = case["gradient_statistics"]
    config, params = torch_model(told)
    g = np.random.default_rng(told["token_seed"])
    train = tokens(g, told["n_train"], told["V"])
    test = tokens(g, told["n_test"], told["V"])
    protocol = jaxlm.Dynamic(
        learning_rate=told["lr"],
        lambda_=told["lamb"],
        epsilon=told["epsilon"],
        segment_length=told["bptt"],
        statistics_rows=told["batch_size"],
        statistics_windows=max(0, told["max_batches"]),
        compatibility="krause",
    )
    rms = gradient_statistics(Network(config.model, params), train, protocol)
    for name, part in (
        ("encoder.weight", rms["embedding"]),
        ("decoder.bias", rms["softmax"]["bias"]),
        *((f"rnns.{layer}.bias_ih_l0", found["bias"]) for layer, found in enumerate(rms["layers"])),
    ):
        np.testing.assert_allclose(
            np.linalg.norm(part), expected["root_mean_square"][name][0], rtol=1e-5
        )

    scoring = OneStream(
        DynamicReader(Network(config.model, params), protocol, rms), Detail(full=False)
    )
    nats = scoring([test]).nats
    lengths = case["segments"]["lengths"]
    ends = np.cumsum(lengths)
    losses = [part.mean() for part in np.split(nats[: ends[-1]], ends[:-1])]
    np.testing.assert_allclose(losses, case["segments"]["loss"], rtol=1e-5)
    found = evaluated(config, params, train, test, protocol)
    assert found.predictions == ends[-1]
    np.testing.assert_allclose(found.perplexity, case["perplexity"], rtol=1e-5)
    if (
        lengths[-1] == told["bptt"]
    ):  # else the reference's last step is on a segment that we keep open
        final = jax.tree.map(lambda leaf: leaf[0], scoring.state[0])
        wanted = case["final_tensors"]
        np.testing.assert_allclose(
            np.linalg.norm(final["embedding"]), wanted["encoder.weight"][0], rtol=1e-5
        )
        for layer, one in enumerate(final["layers"]):
            biases = [wanted[f"rnns.{layer}.bias_{part}_l0"][1] for part in ("ih", "hh")]
            np.testing.assert_allclose(one["bias"].sum(), sum(biases), rtol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize(
    "case",
    [case for case in recorded("mogrifier")["language_models"] if not case["masks"]],
    ids=lambda case: case["name"].split(";")[0],
)
def test_lamb_s_dynamic_evaluation(case):
    """After its windows of training by rmsprop, which is Adam without a mean of the gradient."""
    config = lamb_config(case)
    params = jax.tree.map(jnp.asarray, lamb_params(case))
    B = case["B"]
    T = config.train.bptt_length
    V = config.model.vocab_size
    rule = config.optimizer
    expected = case["dyneval"]
    t = np.random.default_rng(case["token_seed"])
    train, _, test = (
        (t.random((rows, windows * T + 1)) ** 3 * V).astype(np.int32)
        for rows, windows in ((B, case["steps"]), (B, 3), (1, 12))
    )
    protocol = jaxlm.Dynamic(
        learning_rate=expected["learning_rate"],
        lambda_=expected["decay_rate"],
        segment_length=T,
        epsilon=expected["epsilon"],
        statistics_rows=B,
        compatibility="lamb",
    )
    model = config.model
    assert isinstance(rule, LambAdam)

    @jax.jit
    def learnt(params, v, carry, step, tokens):
        counted = jnp.ones((T, B), bool)
        grads, (_, carry) = text_gradient(
            Network(model, params), Tokens(tokens[:-1], tokens[1:], counted), carry, rule
        )
        v = jax.tree.map(lambda v, g: rule.beta2 * v + (1 - rule.beta2) * g * g, v, grads)
        rate = rule.learning_rate * jnp.sqrt(1 - rule.beta2**step)
        return (
            jax.tree.map(
                lambda p, v, g: p - rate * g / (jnp.sqrt(v) + rule.epsilon), params, v, grads
            ),
            v,
            carry,
        )

    state = params, jax.tree.map(jnp.zeros_like, params), stack.zero_carry(model, B)
    for step in range(case["steps"]):
        state = learnt(*state, step + 1, train.T[step * T : (step + 1) * T + 1])
    network = Network(model, state[0])
    rms = gradient_statistics(network, train.reshape(-1), protocol, rule)
    found = OneStream(DynamicReader(network, protocol, rms, rule), Detail(full=False))([test[0]])
    np.testing.assert_allclose(found.nats.reshape(-1, T).mean(1), expected["test"], rtol=1e-5)


def language_model(kind: str = "lstm", dropout: bool = False, tied: bool = False):
    lm = small_lm(kind, tied)
    config = (
        lm.config.replace(keep_output=0.6, keep_embedding=0.8, bptt_length=4)
        if dropout
        else lm.config
    )
    return type(lm)(lm.params, config, lm.vocab, lm.corpus)


def scoring(
    name: str,
    values: dict,
    *,
    kind: str = "lstm",
    stream: bool = True,
    dropout: bool = False,
    top: int = 0,
    full: bool = True,
    tied: bool | None = None,
) -> Any:
    lm = language_model(kind, dropout, name in TIED if tied is None else tied)
    reader = lm.reader_of(protocol_of(name, **values), corpus_of(TRAIN, IDS))
    detail = Detail(top, full)
    if stream:
        return OneStream(reader, detail)
    return partial(each_sentence, reader, detail)


def plain_nats(kind: str) -> np.ndarray:
    return small_lm(kind).scorer("stream", full=False)([IDS]).nats


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "lstm") for name in SETTINGS),
        *(
            pytest.param(name, kind, marks=pytest.mark.slow)
            for name in SETTINGS
            for kind in (*KINDS[1:], "mogrifier")
        ),
    ],
)
def test_a_protocol_at_its_neutral_numbers_is_the_plain_model(name, kind):
    how: dict[str, Any] = dict(dropout=True, full=False, tied=False)
    np.testing.assert_allclose(
        scoring(name, NEUTRAL[name], kind=kind, **how)([IDS]).nats,
        plain_nats(kind),
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_probabilities_sum_to_one_and_scores_follow_from_them(name):
    V = 17
    found = scoring(name, SETTINGS[name], dropout=True, top=V)([IDS])
    p = np.zeros((len(IDS) - 1, V))
    np.put_along_axis(p, found.top, np.exp(-found.top_nats.astype(float)), 1)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(
        found.nats, -np.log(np.take_along_axis(p, IDS[1:, None], 1)[:, 0]), atol=1e-5
    )
    np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(1), atol=1e-5)
    assert (found.rank == 1 + (p > np.take_along_axis(p, IDS[1:, None], 1)).sum(1)).all()
    alone = scoring(name, SETTINGS[name], dropout=True, full=False)([IDS]).nats
    np.testing.assert_allclose(alone, found.nats, atol=1e-5)


@pytest.mark.parametrize("segment", [4, 128])
def test_the_cache_is_what_its_definition_says(monkeypatch, segment):
    """Whether the text is one segment or many."""
    monkeypatch.setattr(reading, "SEGMENT", segment)
    lm = small_lm()
    values = SETTINGS["cache"]
    W = values["cache_window"]
    theta = values["theta"]
    weight = values["lambda_"]

    @jax.jit
    def states_and_odds(params):
        x = stack.embed(params, jnp.asarray(IDS[:-1, None]))
        h, _ = stack.features(
            lm.config.model, params, Noise(), x, stack.zero_carry(lm.config.model, 1)
        )
        return h[:, 0], jax.nn.softmax(heads.logits(lm.config.model, params, h[:, 0]))

    h, own = (np.asarray(found, np.float64) for found in states_and_odds(lm.params))
    expected = []
    for t, target in enumerate(IDS[1:]):
        p = own[t, target]
        first = max(0, t - W)
        if t:
            odds = np.exp(theta * h[first:t] @ h[t])
            p = (1 - weight) * p + weight * odds[
                IDS[first + 1 : t + 1] == target
            ].sum() / odds.sum()
        expected.append(-np.log(p))
    found = scoring("cache", values, dropout=True, full=False)([IDS])
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5)


def test_a_text_fills_no_more_of_the_cache_than_it_has_tokens():
    network: Any = None
    reader = CacheReader(network, Cache(cache_window=100))
    windows = [reader.sized_for(tokens).protocol.cache_window for tokens in (1, 64, 100, 500)]
    assert windows == [1, 64, 100, 100]


def test_the_authors_cache_is_silent_at_any_theta():
    """Where it is silent its pairs weigh nothing, however alike they are."""
    sharp = {
        "cache_window": 7,
        "theta": 1e6,
        "lambda_": 0.3,
        "cache_chunk": 5,
        "compatibility": "awd-lstm",
    }
    found = scoring("cache", sharp)([IDS])
    assert np.isfinite(found.nats).all() and np.isfinite(found.entropy).all()


def test_dynamic_evaluation_by_sgd_is_what_its_definition_says():
    lm = small_lm()
    T = 4
    model = lm.config.model
    p0 = lm.params
    params = p0
    carry = stack.zero_carry(model, 1)
    expected = []

    @jax.jit
    def read(params, carry, inputs, targets):
        def nats(params):
            found, after = stack.features(
                model, params, Noise(), stack.embed(params, inputs), carry
            )
            each = -jax.nn.log_softmax(heads.logits(model, params, found[:, 0]))[
                jnp.arange(len(targets)), targets
            ]
            return each.mean(), (each, after)

        grads, (each, after) = jax.grad(nats, has_aux=True)(params)
        return (
            jax.tree.map(lambda p, p0, g: p + 0.05 * (p0 - p) - 0.3 * g, params, p0, grads),
            after,
            each,
        )

    for start in range(0, 64, T):
        params, carry, each = read(
            params, carry, IDS[start : start + T, None], IDS[start + 1 : start + T + 1]
        )
        expected += each.tolist()
    values = {"rule": "sgd", "learning_rate": 0.3, "lambda_": 0.05, "segment_length": T}
    found = scoring("dynamic", values, tied=False)([IDS])
    np.testing.assert_allclose(found.nats, expected, rtol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stream_is_read_alike_in_one_call_and_in_many(name):
    whole, parts = (scoring(name, SETTINGS[name], dropout=True, full=False) for _ in range(2))
    cuts = [0, 1, 2, 7, 8, 40, 41, 64]
    found = np.concatenate([parts([IDS[a : b + 1]]).nats for a, b in pairwise(cuts)])
    np.testing.assert_allclose(found, whole([IDS]).nats, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_sentences_begin_anew_and_are_alike_alone_and_side_by_side(name, monkeypatch):
    monkeypatch.setattr(reading, "SEGMENTS_OF_CALLS", (1,))
    sentences = [IDS[:17], IDS[30:34], IDS[40:42]]
    how: dict[str, Any] = dict(dropout=True, full=False)
    together = scoring(name, SETTINGS[name], stream=False, **how)(sentences).nats
    alone = [scoring(name, SETTINGS[name], **how)([ids]).nats for ids in sentences]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_a_temperature_divides_the_logits():
    gaps = [
        np.diff(scoring("temperature", {"temperature": t}, dropout=True, top=17)([IDS]).top_nats)
        for t in (1.0, 2.5)
    ]
    np.testing.assert_allclose(gaps[0], 2.5 * gaps[1], atol=2e-5)


def test_a_sentence_shorter_than_the_cache_is_kept_whole():
    wide = SETTINGS["cache"] | {"cache_window": 100}
    streamed, alone = (
        scoring("cache", wide, stream=stream, full=False) for stream in (True, False)
    )
    np.testing.assert_allclose(alone([IDS[:17]]).nats, streamed([IDS[:17]]).nats, atol=1e-5)


def test_a_long_sentence_is_not_read_beside_short_ones(monkeypatch):
    sentences = [IDS[:4]] * 5 + [IDS[:60]] + [IDS[:4]] * 4
    read = reading._read_segments
    shapes = []
    together = small_lm().scorer(full=False)(sentences).nats
    monkeypatch.setattr(reading, "MOST_PADDED", 64)
    monkeypatch.setattr(
        reading, "_read_segments", lambda *given: shapes.append(given[2].shape) or read(*given)
    )
    np.testing.assert_allclose(small_lm().scorer(full=False)(sentences).nats, together, atol=1e-5)
    assert sorted(shapes) == [(3, 8, 1), (3, 8, 8), (3, 64, 1)]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_longer_stream_and_other_numbers_compile_nothing_anew(name, monkeypatch):
    monkeypatch.setattr(reading, "SEGMENTS_OF_CALLS", (1,))
    run = scoring(name, SETTINGS[name], dropout=True, full=False)
    compiled = reading._read
    run([IDS[:30]])
    sizes = compiled._cache_size()  # pyright: ignore
    shapes = [leaf.shape for leaf in jax.tree.leaves(run.state)]
    run([IDS[29:]])
    other = {
        key: value * 0.9 if isinstance(value, float) else value
        for key, value in SETTINGS[name].items()
    }
    scoring(name, other, dropout=True, full=False)([IDS])
    assert compiled._cache_size() == sizes  # pyright: ignore
    assert [leaf.shape for leaf in jax.tree.leaves(run.state)] == shapes


def test_many_networks_with_dropout_have_the_mean_of_their_probabilities():
    each = []
    for seed in range(2):
        found = [
            scoring("mc", {"samples": n, "seed": seed}, dropout=True, full=False)([IDS]).nats
            for n in (1, 3)
        ]
        assert np.abs(found[0] - found[1]).max() > 1e-3
        each.append(found[1])
    assert np.abs(each[0] - each[1]).max() > 1e-3
    assert np.array_equal(
        each[1], scoring("mc", {"samples": 3, "seed": 1}, dropout=True, full=False)([IDS]).nats
    )


def test_each_window_draws_dropout_anew():
    reader = language_model(dropout=True).reader_of(protocol_of("mc", samples=2))
    window, carries = reader.start()
    tokens = Tokens(jnp.asarray(IDS[:4]), jnp.asarray(IDS[1:5]), jnp.ones(4, bool))
    read = jax.jit(lambda window: reader.read((window, carries), tokens, Detail()))
    first, after = read(window)
    second, _ = read(window + 1)
    assert after[0] == window + 1 and np.abs(first.nats - second.nats).max() > 1e-3


def test_many_networks_without_dropout_are_refused_and_a_factor_scales_the_rates():
    with pytest.raises(JaxlmError, match="this model was trained without"):
        small_lm().evaluate(text=__file__, protocol="mc")
    full, half = (
        scoring("mc", {"samples": 3, "dropout_factor": factor}, dropout=True, full=False)([IDS])
        for factor in (1.0, 0.5)
    )
    lm = language_model(dropout=True, tied=True)
    weaker = lm.config.replace(keep_output=0.8, keep_embedding=0.9)
    same = type(lm)(lm.params, weaker, lm.vocab, {}).reader_of(protocol_of("mc", samples=3))
    np.testing.assert_allclose(
        half.nats, OneStream(same, Detail(full=False))([IDS]).nats, rtol=1e-5
    )
    assert np.abs(half.nats - full.nats).max() > 1e-3
    with pytest.raises(JaxlmError, match=r"drops every unit of keep_output, which is 0\.6"):
        scoring("mc", {"dropout_factor": 2.5}, dropout=True)


@pytest.mark.parametrize(
    "kind", ["lstm", "lamb-mogrifier"]
)  # which drops words as inputs alone, and as outputs too
def test_a_network_with_dropout_is_the_one_that_training_reads(kind):
    shape = {
        "model": kind,
        "vocab_size": 17,
        "embedding_size": 8,
        "hidden_sizes": (8,),
        "tied": True,
    }
    model = jaxlm.preset("small").replace(**shape, keep_words=0.5, keep_output=0.7).model
    params = drawn_params(model, seed=1)
    ids = jnp.asarray(IDS[:11])
    reader = MCReader(Network(model, params), MCDropout(samples=1, seed=3), 10)

    @jax.jit
    def expected(params, ids):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 0)
        noise = draw_noise(model, key, 10, 1)
        carry = stack.zero_carry(model, 1)
        kept, _, found, _ = stack.read(model, params, noise, ids[:-1, None], carry)
        return heads.token_nats(model, kept, found, ids[1:, None], noise.latents)[:, 0]

    np.testing.assert_allclose(
        OneStream(reader, Detail(full=False))([IDS[:11]]).nats, expected(params, ids), rtol=1e-6
    )


def test_evaluate_reads_every_prediction_in_blocks(monkeypatch):
    lm = language_model()
    plain, count = stream_nats(lm.config.model, lm.params, IDS)
    monkeypatch.setattr("jaxlm.scoring.stream.BLOCK", 13)
    found = evaluated(lm.config, lm.params, TRAIN, IDS, jaxlm.Temperature())
    assert found.predictions == count == 64
    np.testing.assert_allclose(found.nats, plain, rtol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("protocols") / "tiny"
    config = jaxlm.preset("small").replace(
        corpus="embedded-tiny", hidden_sizes=(8,), embedding_size=8, epochs=1, keep_output=0.9
    )
    jaxlm.train(config, run_dir=path, steps=20, quiet=True)
    return str(path)


GRIDS = {
    "temperature": {"temperature": np.array([3.0, 1.0, 2.0])},
    "cache": {"theta": (0.5, 2.0, 0.0), "lambda_": (0.3, 0.0)},
    "dynamic": {"learning_rate": (1e-4, 1e-2)},
    "mc": {"dropout_factor": (1.0, 0.5)},
}


@pytest.mark.parametrize(  # by default one whose values are read at once, and one of many readings
    "name",
    [
        pytest.param(name, marks=[] if name in ("cache", "dynamic") else [pytest.mark.slow])
        for name in GRIDS
    ],
)
def test_tuning_chooses_on_valid_and_reads_test_once(run, monkeypatch, name):
    lm = jaxlm.load(run)
    read = []
    plainly = stream.reader_nats

    def noted(reader, ids):
        read.append(len(ids))
        return plainly(reader, ids)

    monkeypatch.setattr("jaxlm.scoring.evaluation.reader_nats", noted)
    few = {"dynamic": {"segment_length": 1000}, "mc": {"samples": 2}}
    protocol = protocol_of(name, **few.get(name, {}))
    found = jaxlm.tune_protocol(lm, protocol, grid=GRIDS[name])
    corpus = jaxlm.load_corpus("embedded-tiny")
    assert read == [len(corpus.valid)] * (2 if name in few else 1) + [len(corpus.test)]
    assert found.valid == found.tried[0][1] and found.protocol == found.tried[0][0]
    assert found.test == lm.evaluate(protocol=found.protocol)
    values = [value for _, value in found.tried]
    assert values == sorted(values) and len(values) == np.prod(
        [len(some) for some in GRIDS[name].values()]
    )
    np.testing.assert_allclose(
        values, [lm.evaluate("valid", protocol=one).perplexity for one, _ in found.tried], rtol=1e-5
    )


def test_a_test_split_that_a_protocol_cannot_read_is_told_before_valid_is_read(run, monkeypatch):
    corpus = jaxlm.load_corpus("embedded-tiny")
    monkeypatch.setattr(
        "jaxlm.scoring.evaluation.reader_nats", lambda *_: pytest.fail("valid was read")
    )
    short = replace(corpus, test=corpus.test[:50])
    with pytest.raises(
        JaxlmError, match=r"cache_window 100 is larger than the 49 predictions of .* test"
    ):
        jaxlm.load(run).tune(protocol_of("cache", cache_window=100), corpus=short)


def test_the_settings_that_tuning_chose_are_in_its_json(run, capsys):
    assert main(["evaluate", run, "--protocol", "temperature", "--tune", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    chosen = jaxlm.tune_protocol(run, "temperature")
    settings = json.loads(json.dumps(vars(chosen.protocol)))
    assert told["protocol"] == {"name": "temperature", **settings}
    assert told["tuned_valid_perplexity"] == pytest.approx(chosen.valid)
    assert told["perplexity"] == pytest.approx(chosen.test.perplexity)


def test_tuning_leaves_out_what_diverges(run):
    wild = jaxlm.Dynamic(rule="sgd", learning_rate=1e30, segment_length=1000)
    found = jaxlm.tune_protocol(run, wild, grid={"learning_rate": (1e30, 1e-3)})
    assert found.protocol == protocol_of(wild, learning_rate=1e-3) and np.isnan(found.tried[-1][1])
    with pytest.raises(Diverged, match="lower learning_rate, which is 1e\\+30"):
        jaxlm.evaluate(run, protocol=wild)
    with pytest.raises(Diverged, match="lower learning_rate, which is 1e\\+30"):
        comparison.compare(lm := jaxlm.load(run), lm, protocol=wild)


def test_rms_is_refused_where_the_training_text_is_unknown(run, tmp_path):
    (tmp_path / "text.txt").write_text("the bank lends\n")
    lm = jaxlm.load(run)
    imported = replace(lm, config=lm.config.replace(corpus="unknown"))
    with pytest.raises(DataError, match="imported model: take the rule sgd"):
        imported.evaluate(text=tmp_path / "text.txt", protocol="dynamic")
    assert (
        imported.evaluate(
            text=tmp_path / "text.txt", protocol=jaxlm.Dynamic(rule="sgd")
        ).predictions
        == 3
    )


def test_sentences_that_diverge_have_no_scores(run, tmp_path, capsys):
    pair = {"sentence_good": "the bank lends " * 5, "sentence_bad": "lends bank the " * 5}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    wild = [
        "--protocol",
        "dynamic",
        "--rule",
        "sgd",
        "--learning-rate",
        "3e38",
        "--segment-length",
        "1",
    ]
    assert main(["minimal-pairs", run, str(tmp_path / "pairs.jsonl"), *wild]) == 3
    said = capsys.readouterr()
    assert (
        said.out == ""
        and "dynamic evaluation diverged on the sentences: lower learning_rate" in said.err
    )


VERBS = {  # what each reads, and a column of what it prints
    "surprisal": ("text.txt", "surprisal"),
    "minimal-pairs": ("pairs.jsonl", "accuracy"),
    "syntaxgym": ("suite.json", "correct"),
    "evaluate": None,
}
FLAGS = {
    "cache": ["--cache-window", "50"],
    "dynamic": ["--rule", "sgd"],  # (by default it reads all of train before each text)
    "mc": ["--samples", "2"],
    "temperature": ["--temperature", "1.2"],
}
# By default every verb takes one protocol, and every protocol is taken.
USUAL = {("cache", "surprisal"), ("dynamic", "minimal-pairs"), ("mc", "syntaxgym")} | {
    ("temperature", verb) for verb in VERBS
}


@pytest.mark.parametrize(
    ("protocol", "verb"),
    [
        pytest.param(*pair, marks=[] if pair in USUAL else [pytest.mark.slow])
        for pair in product(FLAGS, VERBS)
    ],
)
def test_every_verb_that_scores_takes_a_protocol(run, protocol, verb, tmp_path, capsys):
    files = {
        "text.txt": "the bank lends\nevery bank\n",
        "pairs.jsonl": json.dumps(
            {"sentence_good": "the bank lends", "sentence_bad": "lends lends bank"}
        ),
        "suite.json": json.dumps(
            {
                "meta": {"name": "s"},
                "predictions": [{"formula": "(1;%a%) < (1;%b%)"}],
                "items": [
                    {
                        "item_number": 1,
                        "conditions": [
                            {
                                "condition_name": name,
                                "regions": [{"region_number": 1, "content": text}],
                            }
                            for name, text in (("a", "the bank"), ("b", "bank the"))
                        ],
                    }
                ],
            }
        ),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    flags = ["--protocol", protocol, *FLAGS[protocol]]
    reads = VERBS[verb]
    if reads is None:
        assert main([verb, run, *flags]) == 0
        assert f"; protocol {protocol} (" in capsys.readouterr().out
        return
    file, column = reads
    assert main([verb, run, str(tmp_path / file), *flags]) == 0
    said = capsys.readouterr()
    assert column in said.out.splitlines()[0] and len(said.out.splitlines()) > 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--protocol", "cache", "--lambda", "1"], ["lambda must be at least 0 and below 1"]),
        (
            ["--protocol", "cache", "--cache-window", "5000"],
            ["cache_window 5,000", "3,999 predictions"],
        ),
        (
            ["--protocol", "dynamic", "--theta", "1"],
            ["theta belongs to the protocol cache", "dynamic"],
        ),
        (["--theta", "1"], ["theta belongs to the protocol cache", "plain"]),
        (
            ["--protocol", "temperature", "--temperature", "1e-38"],
            ["temperature must be at least 1e-06; it is 1e-38"],
        ),
        (
            ["--protocol", "cache", "--theta", "1e38"],
            ["theta must be at least 0 and at most 1,000,000; it is 1e+38"],
        ),
        (["--protocol", "mc", "--samples", "0"], ["samples must be at least 1"]),
        (["--protocol", "mc", "--dropout-factor", "10"], ["drops every unit", "below 10"]),
        (["--tune"], ["plain has nothing left to tune"]),
        (["--protocol", "cache", "--tune", "--split", "valid"], ["--tune", "--split"]),
        (
            ["--protocol", "cache", "--compatibility", "krause"],
            ["compatibility must be none or awd-lstm"],
        ),
        (
            ["--protocol", "dynamic", "--rule", "sgd", "--compatibility", "krause"],
            ["compatibility krause", "rule sgd"],
        ),
        (
            ["--protocol", "dynamic", "--statistics-rows", "30000"],
            ["statistics_rows 30,000", "lower"],
        ),
    ],
)
def test_mistakes_are_one_sentence(run, arguments, parts, capsys):
    assert main(["evaluate", run, *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert all(part in said.err for part in parts), said.err


def test_adaptation_and_a_protocol_are_two_ways_to_learn(run, capsys):
    assert main(["surprisal", run, "x.txt", "--adapt", "0.1", "--protocol", "dynamic"]) == 1
    assert "--adapt" in (error := capsys.readouterr().err) and "leave --protocol out" in error


def test_a_last_segment_of_one_prediction_is_left_out_as_krause_does(run, tmp_path):
    lm = jaxlm.load(run)
    text = tmp_path / "text"
    for words, length, predictions in ((7, 5, 5), (6, 5, 5), (6, 1, 4)):
        text.write_text("the " * words)
        protocol = jaxlm.Dynamic(
            compatibility="krause", segment_length=length, statistics_windows=1
        )
        assert lm.evaluate(text=text, protocol=protocol).predictions == predictions
    text.write_text("the the")
    with pytest.raises(DataError, match="1 tokens are too few"):
        lm.evaluate(text=text, protocol=protocol)


def test_names_and_fields_of_python_are_checked():
    assert type(protocol_of()) is PROTOCOLS["plain"] and protocol_of("cache", theta=2).theta == 2.0  # pyright: ignore
    for given, values, part in (
        ("cahe", {}, "protocol must be plain, cache"),
        (3, {}, "it is 3"),
        ("cache", {"thetta": 1}, "did you mean 'theta'"),
        (jaxlm.Cache(theta=-1.0), {}, "theta must be at least 0"),
        ("dynamic", {"compatibility": "awd-lstm"}, "compatibility must be none, krause"),
        ("mc", {"seed": 2**32}, "at most 4,294,967,295; it is 4294967296"),
    ):
        with pytest.raises(JaxlmError, match=part):
            protocol_of(given, **values)  # pyright: ignore
    with pytest.raises(JaxlmError, match="PyTorch's LSTM, and the model is gru"):
        scoring("dynamic", {"compatibility": "krause"}, kind="gru")


def test_a_class_is_no_protocol():
    with pytest.raises(JaxlmError, match=r"Cache\(\)"):
        protocol_of(jaxlm.Cache)  # pyright: ignore
