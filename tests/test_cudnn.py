"""ops/cudnn.py: what cuDNN is given means the reference's numbers; where there is no CUDA device it is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

import jaxlm
from jaxlm.errors import JaxlmError
from jaxlm.ops.cudnn import lstm_cudnn
from jaxlm.ops.lstm import LSTMState, lstm_reference

CUDA = any(device.platform == "gpu" for device in jax.devices())


def written_out(x, h, c, weights, lengths, *, input_size, hidden_size, num_layers, dropout, bidirectional):
    """JAX's own reference of what cuDNN computes from the flat weights."""
    sizes = dict(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers, bidirectional=bidirectional)
    return rnn.lstm_ref(
        x, h, c, *rnn.unpack_lstm_weights(weights, **sizes), seq_lengths=lengths, dropout=dropout, **sizes
    )


@pytest.mark.parametrize("forget_bias", [0.0, 1.0])
def test_equals_the_reference(monkeypatch, forget_bias):
    if not CUDA:
        monkeypatch.setattr(rnn, "lstm", written_out)
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.5, jnp.float32)  # noqa: E731
    T, B, E, H = 5, 3, 4, 6
    arguments = normal(T, B, E), normal(E + H, 4 * H), normal(4 * H), LSTMState(normal(B, H), normal(B, H))

    def scalar(op):
        def total(*arguments):
            y, final = op(*arguments, forget_bias)
            return jnp.sum(jnp.sin(y)) + jnp.sum(final.c**2) + 2 * jnp.sum(final.h), (y, final)

        return jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True)(*arguments)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), scalar(lstm_cudnn), scalar(lstm_reference)
    )


@pytest.mark.skipif(CUDA, reason="there is a CUDA device")
def test_refused_without_a_cuda_device():
    config = jaxlm.preset("small").replace(corpus="embedded-tiny", batch_size=20, recurrent_op="cudnn")
    with pytest.raises(JaxlmError, match="recurrent_op cudnn needs a CUDA device, and there is only cpu"):
        jaxlm.train(config, quiet=True)


def test_refused_in_bfloat16():
    with pytest.raises(JaxlmError, match="recurrent_op cudnn computes in float32"):
        jaxlm.preset("small").replace(recurrent_op="cudnn", compute_dtype="bfloat16")
