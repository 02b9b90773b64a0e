"""Many devices give one device's numbers:
virtual ones of the processor, in processes of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import ONE_THREAD

from jaxlm.base.errors import JaxlmError
from jaxlm.distributed import hosts
from jaxlm.ops.dropout import draw_mask

ROOT = Path(__file__).resolve().parents[1]


def on_devices(count: int, code: str, optimized: bool = True) -> str:
    """Runs a program with so many virtual devices; what it printed.
    Not optimized, it compiles in half the time.
    """
    flags = f"{ONE_THREAD} --xla_force_host_platform_device_count={count}"
    flags += "" if optimized else " --xla_backend_optimization_level=0"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_row_s_dropout_does_not_depend_on_the_rows_beside_it():
    key = jax.random.key(1)
    whole = draw_mask(key, 0.6, (7, 6, 5))
    np.testing.assert_array_equal(draw_mask(key, 0.6, (7, 2, 5)), whole[:, :2])
    assert (
        len(np.unique(np.asarray(whole).transpose(1, 0, 2).reshape(6, -1), axis=0)) == 6
    )  # no two rows share one
    assert 0.5 < float(whole.mean()) < 0.7


TRAJECTORY = """
import tempfile
from functools import partial
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
import jaxlm
from jaxlm.distributed.mesh import fetch, make_mesh, place, put_rows
from jaxlm.data.windows import batch
from jaxlm.runs.run import window_plan
from jaxlm.scoring.stream import stream_nats
from jaxlm.training.step import init_state, train_windows

fresh = jax.jit(init_state, static_argnums=2)

def trajectory(config, ids, valid, params=None, mesh=None, steps=50):
    T, B, recipe = config.train.bptt_length, config.train.batch_size, config.recipe
    state = place(mesh, fresh(recipe, jax.random.key(config.train.seed), B, params))
    tokens = put_rows(mesh, (len(ids) // B, B), lambda rows: batch(ids, B, rows))
    plan, costs = window_plan(config.replace(epochs=9), len(ids) // B), []
    while len(costs) < steps:
        at = len(costs)
        epoch, index = plan.locate(at)
        size = plan.windows_in(0)
        count = min(plan.windows_in(epoch) - index, size, steps - at)
        windows = plan.windows(at, count, size)
        state, metrics = train_windows(
            recipe,
            state,
            tokens,
            windows,
            jnp.int32(count),
            bptt_length=config.train.longest,
            small_batch=config.train.small_batch,
            mesh=mesh,
        )
        rows = np.array([metrics.cost, metrics.grad_norm, metrics.learning_rate]).T
        costs += rows[:count].tolist()
    nats, _ = stream_nats(recipe.model, state.evaluated, valid, B, T, mesh)
    return np.array(costs).T, nats, fetch(mesh, state, recipe.model.vocab_size)
"""


def test_a_divided_step_gathers_no_logits():
    """The program of a window over 2 x 2 devices exchanges sums over rows or words,
    and gathers no [rows, V].
    """
    on_devices(
        4,
        TRAJECTORY
        + """
import re
V, B = 1000, 8
config = jaxlm.preset("small").replace(
    vocab_size=V, embedding_size=8, hidden_sizes=(8, 6), batch_size=B, bptt_length=4
)
for changes in ({}, {"tied": True, "hidden_sizes": (8, 8)}, {"experts": 2}):
    config, mesh = config.replace(**changes), make_mesh(B, 2, 2)[0]
    state = place(mesh, fresh(config.recipe, jax.random.key(0), B))
    tokens = put_rows(mesh, (40, B), lambda rows: np.zeros((40, B), np.int32)[:, rows])
    windows = window_plan(config, 40).windows(0, 2, 2)
    lowered = train_windows.lower(
        config.recipe, state, tokens, windows, 2, bptt_length=4, mesh=mesh
    )
    program = lowered.compile().as_text()
    exchange = "all-gather|all-to-all|collective-permute"
    shapes = re.findall(r"\\w+\\[([\\d,]*)\\]\\S* (" + exchange + ")", program)
    assert " all-reduce" in program
    if not changes:  # an update of the embedding is sent as the rows that were read, not as a table
        lines = [line for line in program.splitlines() if " all-reduce(" in line]
        sums = [line.split(" all-reduce(")[0] for line in lines]
        assert not [shapes for shapes in sums if "[500,8]" in shapes]
    widest = max([int(shape.split(",")[-1] or 1) for shape, _ in shapes], default=0)
    assert widest < V // 2, shapes
""",
    )


def test_devices_of_a_batch_share_the_matrices_that_muon_orthogonalises():
    """Of five matrices the program of each of four devices multiplies two; results are one's."""
    on_devices(
        8,
        """
import re
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxlm.distributed.mesh import make_mesh
from jaxlm.ops.devices import shared_by_devices
from jaxlm.ops.newton_schulz import orthogonalized

x = np.random.default_rng(0).normal(size=(5, 6, 9)).astype(np.float32)
expected = jax.jit(orthogonalized, static_argnums=1)(x, 5)
mesh = make_mesh(4, 4, 2)[0]
shared = jax.jit(lambda x: shared_by_devices(lambda part: orthogonalized(part, 5), x))
with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
    program = shared.lower(placed).compile()
np.testing.assert_allclose(program(placed), expected, rtol=1e-5, atol=1e-6)
products = re.findall(r"= f32\\[(\\d+),\\d+,\\d+\\]\\S* dot\\(", program.as_text())
assert set(products) == {"2"}, products
""",
    )


@pytest.mark.slow
def test_fifty_windows_are_one_devices():
    """By rows, by words (500, which 8 does not divide), by both; with dropout and without."""
    on_devices(
        8,
        TRAJECTORY
        + """
corpus = jaxlm.load_corpus("embedded-tiny")
for keep, meshes in ((0.7, [(8, 1), (2, 2)]), (None, [(2, 1), (1, 8)])):
    config = jaxlm.preset("small").replace(corpus="embedded-tiny", vocab_size=len(corpus.vocab),
                                           embedding_size=8, hidden_sizes=(8, 6), batch_size=24,
                                           bptt_length=10, keep_output=keep,
                                           keep_embedding=keep, clip_norm=1.0)
    one, nats, end = trajectory(config, corpus.train, corpus.valid)
    for sizes in meshes:
        mesh, note = make_mesh(24, *sizes)
        assert tuple(mesh.shape.values()) == sizes and note is None
        many, many_nats, many_end = trajectory(config, corpus.train, corpus.valid, mesh=mesh)
        np.testing.assert_allclose(many[0], one[0], rtol=2e-6, err_msg=f"{sizes}")
        np.testing.assert_allclose(many[1], one[1], rtol=2e-5)
        np.testing.assert_array_equal(many[2], one[2])
        np.testing.assert_allclose(many_nats, nats, rtol=5e-6)
        for a, b in ((many_end.params, end.params), (many_end.carry, end.carry)):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), a, b)
""",
    )


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_devices_may_hold_no_word():
    on_devices(
        8,
        TRAJECTORY
        + """
from processes import CONFIG
from jaxlm.runs.metrics import read_metrics

folder = Path(tempfile.mkdtemp())
one = jaxlm.train(CONFIG, run_dir=folder / "one", steps=45, quiet=True, devices=1)
# 39 are an epoch; the end is tested, batch 1
for steps, devices, words in ((20, 2, 3), (30, 1, 1), (45, 2, 3)):
    many = jaxlm.train(CONFIG, run_dir=folder / "many", steps=steps, quiet=True, devices=devices,
                       model_devices=words, resume=steps > 20)
rows = [read_metrics(folder / name) for name in ("one", "many")]
costs = [[row["cost"] for row in told if row["kind"] == "window"] for told in rows]
np.testing.assert_allclose(*costs, rtol=2e-6)
assert len(costs[0]) == 45
np.testing.assert_allclose(
    many.epochs[0].valid_perplexity, one.epochs[0].valid_perplexity, rtol=5e-6
)
np.testing.assert_allclose(many.test_perplexity, one.test_perplexity, rtol=5e-6)
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=3e-6)
jax.tree.map(close, many.params, one.params)

spread = jaxlm.train(
    CONFIG, run_dir=folder / "spread", steps=20, quiet=True, devices=2, model_devices=3
)
from jaxlm.runs.reproduction import reproduce
same = reproduce(folder / "spread", quiet=True)
assert not same.results and not same.surroundings, same

corpus = jaxlm.load_corpus("embedded-tiny")
config = CONFIG.replace(vocab_size=9, batch_size=20, learning_rate=0.1)
one, many = (trajectory(config, corpus.train % 9, corpus.valid % 9, mesh=make_mesh(20, 1, words)[0])
             for words in (1, 8))
np.testing.assert_allclose(many[0][0], one[0][0], rtol=2e-6)
np.testing.assert_allclose(many[1], one[1], rtol=5e-6)
""",
    )


def test_refusals_name_what_would_do():
    on_devices(
        8,
        """
import jax, pytest
from jaxlm.distributed import mesh as parallel
from jaxlm.base.errors import JaxlmError

def refused(says, *args):
    with pytest.raises(JaxlmError, match=says) as caught:
        parallel.make_mesh(*args)
    assert "\\n" not in str(caught.value)

refused("60 rows .* do not divide over 8 devices: take batch_size 56 or 64, or devices 6$", 60, 8)
says = "64 rows .* do not divide over 5 devices: take batch_size 60 or 65, or devices 4 or 8$"
refused(says, 64, 5)
refused("3 rows .* over 5 devices: take batch_size 5, or devices 3$", 3, 5)
says = "16 devices were asked for .16 for rows x 1 for words., and JAX has 8: .*device_count=16"
refused(says, 64, 16)
refused("JAX has 8", 64, 4, 3)
refused("JAX has 8", 64, None, 9)
refused("devices must be at least 1; it is 0", 64, 0)
refused("model_devices must be at least 1; it is -1", 64, 1, -1)
mesh, note = parallel.make_mesh(60)
why = "do not spread evenly over more"
assert mesh.size == 6
assert note == f"using 6 of 8 devices: the 60 rows of a batch (model_devices 1, processes 1) {why}"
_, note = parallel.make_mesh(64, None, 3)
assert note == f"using 6 of 8 devices: the 64 rows of a batch (model_devices 3, processes 1) {why}"
mesh, note = parallel.make_mesh(60, None, 2)
assert dict(mesh.shape) == {"data": 4, "model": 2} and note is None
assert parallel.make_mesh(7, 1) == (None, None) and parallel.make_mesh(11)[0] is None
""",
    )


GOLDEN = """
from pathlib import Path
from test_golden import HERE, follow, follow_penn_treebank, recorded
from jaxlm.distributed import mesh as parallel
"""


def test_trajectories_of_tensorflow_on_meshes():
    on_devices(
        8,
        GOLDEN
        + """
for name, B, *sizes in (("test-preset", 20, 4, 1), ("three-unequal-layers", 6, 1, 7)):
    follow(HERE / f"{name}.json", parallel.make_mesh(B, *sizes)[0])
""",
    )


@pytest.mark.slow
def test_penn_treebank_on_a_mesh(ptb_dir):
    on_devices(
        6,
        GOLDEN
        + f"""
follow(HERE / "one-layer-three-epochs.json", parallel.make_mesh(4, 2, 2)[0])
follow(HERE / "long-windows.json", parallel.make_mesh(3, 3, 2)[0])
follow_penn_treebank(recorded(Path({str(ptb_dir)!r})), parallel.make_mesh(60, 2, 2)[0])
follow_penn_treebank(recorded(Path({str(ptb_dir)!r})), parallel.make_mesh(60, 4)[0])
""",
    )


def test_processes_agree_on_the_largest_value(monkeypatch):
    """As on a signal that one of them has received, and on a failure in one."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    others = [-1, 15]
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.process_allgather",
        lambda value: np.array([value, *others]),
    )
    assert hosts.agreed(0) == 15
    with pytest.raises(JaxlmError, match="another process failed"):
        hosts.together(lambda: "done")
    others = [-1, 0]
    assert hosts.agreed(3) == 3 and hosts.together(lambda: "done") == "done"
