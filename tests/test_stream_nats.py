"""scoring/stream.py: nats of a stream,
and the law that how it is cut into windows changes nothing.
"""

import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import drawn_params

from jaxlm.base.errors import DataError
from jaxlm.models import stack
from jaxlm.models.lstm import LSTM
from jaxlm.models.noise import Noise
from jaxlm.ops.softmax import token_nats_reference
from jaxlm.scoring.stream import stream_nats

MODEL = LSTM(vocab_size=9, embedding_size=4, hidden_sizes=(5, 3), init_scale=0.7)
PARAMS = drawn_params(MODEL)
IDS = np.random.default_rng(0).integers(0, 9, 101).astype(np.int32)


def plain_nats(ids: np.ndarray, B: int, T: int) -> float:
    rows = ids[: len(ids) // B * B].reshape(B, -1).T
    length = (len(rows) - 1) // T * T
    return float(summed_plainly(rows[:length], rows[1 : length + 1].reshape(-1)))


@jax.jit
def summed_plainly(inputs, targets):
    x = stack.embed(PARAMS, inputs)
    h, _ = stack.features(MODEL, PARAMS, Noise(), x, stack.zero_carry(MODEL, inputs.shape[1]))
    softmax = PARAMS["softmax"]
    return token_nats_reference(h.reshape(-1, 3), softmax["kernel"], softmax["bias"], targets).sum()


@settings(max_examples=4)
@given(B=st.integers(1, 5), T=st.integers(1, 6), per_window=st.sampled_from([1, 7, 64, 4096]))
def test_any_cut_into_windows_gives_the_plain_sum(B, T, per_window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["jaxlm.scoring.stream"], "PREDICTIONS_PER_WINDOW", per_window)
        nats, count = stream_nats(MODEL, PARAMS, IDS, B, T)
    assert count == (101 // B - 1) // T * T * B
    assert nats == pytest.approx(plain_nats(IDS, B, T), rel=1e-5)


@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, 4)])
@pytest.mark.parametrize(("per_window", "per_call"), [(7, 1 << 22), (7, 20), (13, 26)])
def test_predictions_of_padding_do_not_count(monkeypatch, B, T, per_window, per_call):
    """100 or 32 predictions a row are no multiple of any of these windows."""
    module = sys.modules["jaxlm.scoring.stream"]
    monkeypatch.setattr(module, "PREDICTIONS_PER_WINDOW", per_window * B)
    monkeypatch.setattr(module, "PREDICTIONS_PER_CALL", per_call * B)
    assert stream_nats(MODEL, PARAMS, IDS, B, T)[0] == pytest.approx(
        plain_nats(IDS, B, T), rel=1e-5
    )


def test_at_batch_one_every_token_but_the_first_is_predicted():
    nats, count = stream_nats(MODEL, PARAMS, IDS)
    assert count == 100
    assert nats == pytest.approx(plain_nats(IDS, 1, 1), rel=1e-5)


def test_too_few_tokens_are_refused():
    with pytest.raises(DataError, match=r"1 tokens are too few to evaluate: expected at least 2"):
        stream_nats(MODEL, PARAMS, IDS[:1])
