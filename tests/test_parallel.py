"""Many devices give one device's numbers: virtual ones of the processor, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def on_devices(count: int, code: str) -> str:
    """Runs a program with so many virtual devices; what it printed."""
    flags = f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TRAJECTORY = """
import dataclasses, sys, tempfile
import jax, jax.numpy as jnp, numpy as np
import jaxlm
from jaxlm import parallel
from jaxlm.data.batching import batch
from jaxlm.evaluate import stream_nats
from jaxlm.step import init_state, train_windows

def trajectory(config, ids, valid, params=None, mesh=None, steps=50):
    T, B, V = config.train.bptt_length, config.train.batch_size, config.model.vocab_size
    start = init_state(jax.random.key(config.train.seed), config.model, config.hyper, B, params)
    tokens = parallel.put_rows(mesh, (len(ids) // B, B), lambda rows: batch(ids, B, rows))
    state, metrics = train_windows(parallel.put(mesh, start), config.hyper, tokens, jnp.int32(steps), bptt_length=T,
                                   max_windows=steps, mesh=mesh)
    nats = [stream_nats(state.params, config.hyper, valid, *how, mesh=mesh) for how in ((B, T), (1, 1))]
    state = parallel.whole(mesh, state, V)
    return metrics, nats, state
"""


COSTS = TRAJECTORY + """
corpus = jaxlm.load_corpus("embedded-tiny")
for keep in (1.0, 0.7):
    config = jaxlm.preset("small").replace(corpus="embedded-tiny", vocab_size=len(corpus.vocab), embedding_size=8,
                                           hidden_sizes=(8, 6), batch_size=24, bptt_length=10, keep_output=keep,
                                           keep_embedding=keep, clip_norm=1.0)
    one, nats, end = trajectory(config, corpus.train, corpus.valid)
    for devices, words in MESHES:
        mesh, note = parallel.make_mesh(24, devices, words)
        assert mesh.size == devices * words and note is None
        many, many_nats, many_end = trajectory(config, corpus.train, corpus.valid, mesh=mesh)
        for name in ("cost", "grad_norm", "learning_rate"):
            a, b = getattr(many, name), getattr(one, name)
            print(devices, words, keep, name, float(np.abs(np.asarray(a) / np.asarray(b) - 1).max()))
            np.testing.assert_allclose(a, b, rtol=2e-6 if name == "cost" else 2e-5)
        np.testing.assert_allclose(many_nats, nats, rtol=5e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), many_end.params, end.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), many_end.carry, end.carry)
"""


@pytest.mark.parametrize("meshes", ["(2, 1), (4, 1), (8, 1)", "(1, 3), (2, 2), (1, 8)"])
def test_fifty_windows_are_one_devices(meshes):
    print(on_devices(8, f"MESHES = [{meshes}]\n" + COSTS))
