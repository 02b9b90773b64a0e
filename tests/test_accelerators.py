"""Programs compiled for an H100 and for TPUs v5e, none of which is here:
they compile, are divided, and fit.

Needs libtpu and the CUDA plugin of JAX's version (`.ci/nightly` installs them); nothing is run, so
nothing is said of numbers or speed. Each program takes seconds to minutes to compile.
"""

import re
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from recipes import BASE, CASES, MODEL_CASES, MODELS, OPTIMIZERS, V

import jaxlm
from jaxlm.base.errors import JaxlmError

sys.path.append(str(ROOT / "experiments"))
import accelerators  # pyright: ignore (of experiments/)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (
            find_spec("libtpu") and find_spec("jax_plugins") and find_spec("jax_plugins.xla_cuda12")
        ),
        reason="libtpu and jax_cuda12_plugin are not installed: .ci/nightly compiles for them",
    ),
]
WIDE = dict(vocab_size=1000, hidden_sizes=(24, 16), embedding_size=16)

# Every kind of model, head, optimiser and dtype is in some case; a case is compiled for both
# targets.
COVERING = {
    name: {**CASES, **MODEL_CASES}[name].replace(compute_dtype=dtype)
    for name, dtype in (
        *(
            (f"{model}-tied" if place % 2 else model, "bfloat16")
            for place, model in enumerate(MODELS)
        ),
        ("mogrifier-all", "float32"),
        ("projection", "bfloat16"),
        ("tied-mixture", "bfloat16"),
        ("tied-sampled", "float32"),
        ("random-windows-small-batches", "float32"),
        ("awd-lstm-mos", "float32"),
        ("awd-lstm", "bfloat16"),
        ("adamw-average", "float32"),
        ("tied-muon-average", "bfloat16"),
    )
}


def test_every_kind_is_in_some_case():
    kinds = {config.kinds[slot] for config in COVERING.values() for slot in ("model", "optimizer")}
    assert {*MODELS, *OPTIMIZERS} <= kinds


@pytest.mark.parametrize("name", COVERING)
def test_a_step_compiles_for_a_gpu(name):
    program = accelerators.compiled(accelerators.training(COVERING[name], "h100"), "h100")
    assert accelerators.per_window(program.as_text(), accelerators.launched) > 10


@pytest.mark.parametrize("name", COVERING)
def test_a_step_compiles_for_tpus_that_share_rows_and_words_and_gathers_no_logits(name):
    """V does not divide over two devices;
    no array of words is gathered that has a window's rows too.
    """
    config = COVERING[name]
    text = accelerators.compiled(accelerators.training(config, "v5e", 2, 2), "v5e").as_text()
    rows = config.train.longest * config.train.batch_size
    for shape in re.findall(r"= \(?\w+\[([\d,]+)\]\S* all-gather", text):
        sizes = [*map(int, shape.split(","))]
        assert not (V + 1 in sizes and np.prod(sizes) >= rows * (V + 1)), shape
    assert re.search(r"all-reduce|reduce-scatter", text)


@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_evaluation_generation_and_a_vmapped_sweep_compile(target):
    from jaxlm.models import stack
    from jaxlm.runs.run import window_plan
    from jaxlm.scoring import generation
    from jaxlm.scoring.sampling import Sampling
    from jaxlm.scoring.stream import eval_step
    from jaxlm.scoring.token_scores import Network
    from jaxlm.training import members
    from jaxlm.training.step import fresh_state

    model = BASE.replace(**WIDE).model
    params = jax.eval_shape(lambda: stack.init_params(model, jax.random.key(0)))
    carry = jax.eval_shape(lambda: stack.zero_carry(model, 4))
    ids = jax.ShapeDtypeStruct((20, 4), np.int32)

    def compiles(function, *arguments, **options):
        given = accelerators.described(arguments, target)
        accelerators.compiled(jax.jit(function).lower(*given, **options), target)

    compiles(eval_step, model, params, ids, ids, carry)
    token, step, done = jax.eval_shape(
        lambda: (jnp.zeros(4, jnp.int32), jnp.int32(0), jnp.zeros(4, bool))
    )
    position = generation.Position(carry, token, step, done, None)
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiles(
        generation.advance,
        Network(model, params),
        Sampling(),
        position,
        key,
        np.int32(8),
        np.int32(0),
    )

    config = BASE.replace(**WIDE, keep_output=0.5)
    state = fresh_state.eval_shape(config.recipe, np.uint32(0), 4, 0)
    windows = window_plan(config, 100).windows(0, 2, 2)
    many = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((3, *np.shape(leaf)), getattr(leaf, "dtype", np.float32)),
        (config.recipe, state, windows),
    )
    recipes, states, windows, counts, tokens = accelerators.described(
        (*many, np.zeros(3, np.int32), np.zeros((100, 4), np.int32)), target
    )
    lowered = members.train_members.lower(
        recipes, states, tokens, windows, counts, bptt_length=5, vmapped=True
    )
    accelerators.compiled(lowered, target)


@pytest.mark.parametrize("name", ["zaremba-large, bfloat16", "800,000 words, sampled, bfloat16"])
@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_the_largest_programs_fit_into_one_device(name, target):
    row = accelerators.row_of(name, target)
    assert 1e6 * (row["arguments, MB"] + row["temporary, MB"]) < accelerators.TARGETS[target].memory


def test_a_window_of_small_launches_few_kernels():
    """Each costs an H100 microseconds, and `small` little else:
    646 before its loops were partly written out.
    """
    assert accelerators.row_of("small", "h100")["kernels a window"] < 400


def test_a_topology_that_does_not_exist_is_one_sentence(monkeypatch):
    monkeypatch.setitem(
        accelerators.TARGETS, "v5e-3", accelerators.Target("tpu", "v5e:3x1", 1, 1, 1, 1)
    )
    with pytest.raises(JaxlmError, match="no program can be compiled for v5e-3") as caught:
        accelerators.devices("v5e-3")
    assert "\n" not in str(caught.value)


def test_jaxlm_has_a_preset_for_each_program():
    for preset, fields in accelerators.PROGRAMS.values():
        jaxlm.preset(preset).replace(**fields)


def test_devices_that_a_target_has_not_or_rows_do_not_divide_over_are_one_sentence():
    with pytest.raises(JaxlmError, match="v5e has 4 devices, and 4 x 2 were asked for"):
        accelerators.row_of("small", "v5e", 4, 2)
    with pytest.raises(JaxlmError, match="the 60 rows of a batch do not divide over 7 devices"):
        accelerators.row_of("small", "v5e", 7)
