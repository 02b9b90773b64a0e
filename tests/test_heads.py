"""Heads that are more than one softmax:
everything that asks a model for words works with them, or says why not.
"""

from functools import partial
from itertools import combinations

import jax
import numpy as np
import pytest
from language_models import WORDS, log_probs
from recipes import drawn_params

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.data.vocab import Vocab
from jaxlm.interop.exporting import export_model
from jaxlm.models import heads, stack
from jaxlm.scoring.language_model import LanguageModel
from jaxlm.scoring.stream import stream_nats

SENTENCES = ["the dogs run", "a dog", "the dog of the dogs runs of a dog n't run the dogs"]
HEADS = {
    "projection": dict(hidden_sizes=(5, 6), tied=True, projection=True),
    "mixture": dict(experts=3),
    "tied-mixture": dict(hidden_sizes=(5, 6), tied=True, experts=3),
}


@pytest.fixture(
    params=["projection", pytest.param("mixture", marks=pytest.mark.slow), "tied-mixture"]
)
def lm(request) -> LanguageModel:
    config = jaxlm.preset("small").replace(
        **{
            "hidden_sizes": (5, 4),
            "vocab_size": len(WORDS),
            "embedding_size": 4,
            "init_scale": 1.0,
            **HEADS[request.param],
        }
    )
    return LanguageModel(drawn_params(config.model), config, Vocab(WORDS), {})


def test_surprisal_entropy_and_rank_are_what_their_definitions_say(lm):
    found = lm.surprisal(SENTENCES, top_k=2, unit="nats")
    row = 0
    for sentence in SENTENCES:
        log_p = log_probs(lm, words := sentence.split())
        for place, word in enumerate(words):
            own = log_p[place, lm.vocab.ids[word]]
            np.testing.assert_allclose(found.surprisal[row], -own, atol=1e-5)
            np.testing.assert_allclose(
                found.entropy[row], -(np.exp(log_p[place]) @ log_p[place]), atol=1e-5
            )
            assert found.rank[row] == 1 + (log_p[place] > own).sum()
            row += 1
    ids = np.array([lm.vocab.eos, *lm.vocab.encode(SENTENCES[0].split())])
    nats, _ = stream_nats(lm.config.model, lm.params, ids)
    np.testing.assert_allclose(nats, found.surprisal[:3].sum(), rtol=1e-5)


def test_logits_of_a_mixture_have_its_epsilon_as_the_nats_of_evaluation_have():
    config = jaxlm.preset("small").replace(
        vocab_size=20,
        embedding_size=4,
        hidden_sizes=(6,),
        experts=3,
        mixture_epsilon=0.05,
        init_scale=3.0,
    )
    params = drawn_params(config.model)
    features = 3 * np.random.default_rng(1).normal(size=(5, 2, 6)).astype(np.float32)
    targets = np.arange(10).reshape(5, 2)
    log_p = jax.jit(heads.logits)(config.model, params, features)
    nats = jax.jit(heads.token_nats)(config.model, params, features, targets)
    np.testing.assert_allclose(
        -np.take_along_axis(np.asarray(log_p), np.asarray(targets)[..., None], -1)[..., 0],
        nats,
        rtol=1e-5,
    )
    assert (np.asarray(log_p) > np.log(0.05 - 1e-6)).all()


def test_texts_are_drawn_searched_and_adapted_to(lm):
    (text,) = lm.generate("the dogs", words=20, seed=3)
    expected = log_probs(lm, ["the", "dogs", *text.words])[2:-1]
    np.testing.assert_allclose(
        text.log_probs, expected[np.arange(20), lm.vocab.encode(text.words)], atol=1e-4
    )
    (best,) = lm.generate("the", words=3, beam=len(WORDS))
    (greedy,) = lm.generate("the", words=3, temperature=0)
    assert best.log_probs.sum() >= greedy.log_probs.sum() - 1e-5
    adapted = [
        table.surprisal.sum()
        for table in lm.surprisal_stream(SENTENCES[:1] * 6, scoring=lm.adaptive(0.2), block=1)
    ]
    assert adapted[-1] < adapted[0]


def test_what_onnx_cannot_express_is_refused(lm, tmp_path):
    head = (
        "of 3 softmaxes mixed" if lm.config.model.experts else "that is tied through a projection"
    )
    with pytest.raises(JaxlmError, match=f"the model has a head {head}, .* hub or stablehlo"):
        export_model(lm, "onnx", tmp_path / "out")
    with pytest.raises(JaxlmError, match=r"one softmax"):
        jaxlm.to_tensorflow(lm.params)
    assert list(tmp_path.iterdir()) == []


def test_a_projection_joins_a_last_layer_to_a_narrower_embedding():
    config = jaxlm.preset("small").replace(
        vocab_size=20, embedding_size=4, hidden_sizes=(6,), tied=True, projection=True
    )

    def shapes(config):
        tree = jax.eval_shape(partial(stack.init_params, config.model), jax.random.key(0))
        return jax.tree.map(np.shape, tree["softmax"])

    assert shapes(config) == {"projection": (6, 4), "bias": (20,)}
    mixture = config.replace(projection=False, experts=5)
    assert shapes(mixture) == {
        "prior": (6, 5),
        "latent_kernel": (6, 20),
        "latent_bias": (20,),
        "bias": (20,),
    }


@pytest.mark.parametrize("torch_init", [False, True])
@pytest.mark.parametrize(
    "fields",
    [{"experts": 3, "latent_size": 40}, {"tied": True, "projection": True}, {}],
    ids=["mixture", "projection", "plain"],
)
def test_a_head_begins_within_its_scale(fields, torch_init):
    model = jaxlm.LSTM(
        vocab_size=500,
        embedding_size=30,
        hidden_sizes=(100,),
        init_scale=0.3,
        torch_init=torch_init,
        **fields,
    )
    head = jax.jit(partial(heads.init_head, model))(*jax.random.split(jax.random.key(0)))
    head = jax.device_get(head)
    expected = {"kernel": 0.3, "bias": 0.0 if torch_init else 0.3}
    reads = 0.1 if torch_init else 0.3  # 1 / sqrt(100), as PyTorch's Linear
    if model.experts:
        expected |= {"prior": reads, "latent_kernel": reads}
        expected["latent_bias"] = 0.1 if torch_init else 0.0
    if model.projection:
        expected |= {"projection": reads}
        del expected["kernel"]
    assert head.keys() == expected.keys()
    for name, scale in expected.items():
        assert 0.95 * scale <= np.abs(head[name]).max() <= scale + 1e-7
    arrays = [leaf.ravel()[:90] for leaf in head.values() if leaf.any()]
    for a, b in combinations(arrays, 2):
        assert not np.allclose(a / np.abs(a).max(), b / np.abs(b).max(), atol=0.01)
