"""The law of devices over the table in `recipes.py`: what many compute is what one does."""

import pytest
from recipes import CASES
from test_parallel import on_devices

EIGHTS = [" ".join([*CASES][at : at + 8]) for at in range(0, len(CASES), 8)]  # a process each


@pytest.mark.parametrize(
    "names",
    ["tied-muon-average", *(pytest.param(names, marks=pytest.mark.slow) for names in EIGHTS)],
)
def test_many_devices_equal_one(names):
    """By rows and words (11, which 2 does not divide)."""
    on_devices(
        4,
        f"names = {names.split()}"
        + """
import jax, jax.numpy as jnp, numpy as np
from recipes import CASES, T, V, B
from test_parallel import TRAJECTORY
exec(TRAJECTORY)
ids = np.random.default_rng(0).integers(0, V, 200).astype(np.int32)
for name in names:
    config = CASES[name]
    one, nats, end = trajectory(config, ids, ids, steps=6)
    many, many_nats, many_end = trajectory(config, ids, ids, mesh=make_mesh(B, 2, 2)[0], steps=6)
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(many[1], one[1], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(many_nats, nats, rtol=1e-5, err_msg=name)
    for part in ("params", "carry", "opt_state", "average"):
        close = partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-5, err_msg=name)
        jax.tree.map(close, getattr(many_end, part), getattr(end, part))
""",
        optimized=False,
    )
