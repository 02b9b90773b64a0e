"""AWD-LSTM (Merity et al. 2018): trajectories that its published code really ran,
with the noise that it had.

The recordings and their draws: tests/golden/published/README.md. The step is the project's own;
recorded masks are its input.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recordings import recorded, summary

import jaxlm
from jaxlm.config.recipe import Recipe
from jaxlm.data.windows import batch
from jaxlm.models.noise import Noise
from jaxlm.scoring.stream import stream_nats
from jaxlm.training.step import TrainState, Window, init_state, train_step
from jaxlm.training.validations import first_validations, validated

step = jax.jit(
    train_step, compiler_options={"xla_backend_optimization_level": 0}
)  # eight lengths to compile


def gates(array: np.ndarray) -> np.ndarray:
    """[4H, ...] with PyTorch's gates i, f, g, o -> [..., 4H] with ours, i, j, f, o."""
    i, f, g, o = np.split(array, 4)
    return np.concatenate([i, g, f, o]).T


def torch_gates(array: np.ndarray) -> np.ndarray:
    """The inverse of `gates`."""
    i, j, f, o = np.split(array.T, 4)
    return np.concatenate([i, f, j, o])


def torch_layers(layers: list, differences: list, apart: float) -> dict[str, np.ndarray]:
    """PyTorch's tensors of the layers,
    each with two biases that began so far from each other, now times `apart`.
    """
    found = {}
    for k, (layer, difference) in enumerate(zip(layers, differences, strict=True)):
        kernel = np.asarray(layer["kernel"])
        bias = torch_gates(np.asarray(layer["bias"]))
        inputs = len(kernel) - len(bias) // 4
        found |= {
            f"rnns.{k}.weight_ih_l0": torch_gates(kernel[:inputs]),
            f"rnns.{k}.weight_hh_l0": torch_gates(kernel[inputs:]),
            f"rnns.{k}.bias_ih_l0": (bias + apart * difference) / 2,
            f"rnns.{k}.bias_hh_l0": (bias - apart * difference) / 2,
        }
    return found


def switched(state: TrainState) -> TrainState:
    """The state from which on the parameters are averaged."""
    assert state.validations is not None and state.validations.switch is not None
    switch = state.validations.switch._replace(averaging=jnp.bool_(True))
    return replace(state, validations=state.validations._replace(switch=switch))


class Replay:
    """The published run again: its weights, tokens, masks and rates, through `train_step`."""

    def __init__(self, golden: dict, dtype: str):
        c = self.c = golden["config"]
        rates = {
            name: c["rates"][name]
            for name in ("dropouti", "dropouth", "dropout", "dropoute", "wdrop")
        }
        kept = {name: 1 - rate if rate else None for name, rate in rates.items()}
        self.widths = (*[c["hidden"]] * (c["layers"] - 1), c["emb"])
        config = jaxlm.preset("small").replace(
            vocab_size=c["V"],
            embedding_size=c["emb"],
            hidden_sizes=self.widths,
            tied=True,
            locked_dropout=True,
            keep_embedding=kept["dropouti"],
            keep_output=kept["dropouth"],
            keep_last_output=kept["dropout"],
            keep_words=kept["dropoute"],
            keep_recurrent_weights=kept["wdrop"],
            optimizer="awd-lstm",
            cost="mean",
            learning_rate=c["lr"],
            clip_norm=c["clip"],
            weight_decay=c["wdecay"],
            activation_penalty=c["alpha"] or None,
            temporal_penalty=c["beta"] or None,
            hold=1e9,
            batch_size=c["B"],
            bptt_length=c["bptt"],
        )
        self.kept = kept
        self.golden = golden
        self.recipe = Recipe(
            replace(config.model, compute_dtype=dtype), config.optimizer, config.schedule
        )
        g = np.random.default_rng(c["token_seed"])
        self.train, self.valid, self.test = (
            (g.random(n) ** 3 * (c["V"] - 1)).astype(np.int32)
            for n in golden["tokens"]["n_train_valid_test"]
        )
        self.dtype = dtype
        self.params, self.apart = self._weights(np.random.default_rng(c["weight_seed"]))

    def _weights(self, g):
        """The parameters; and of each layer the difference of
        PyTorch's two biases, which only decays.
        """

        def draw(s, *shape):
            return g.uniform(-s, s, shape).astype(np.float32).astype(self.dtype)

        embedding = draw(0.1, self.c["V"], self.c["emb"])
        layers = []
        apart = []
        for inputs, width in zip((self.c["emb"], *self.widths), self.widths, strict=False):
            s = 1 / np.sqrt(width)
            from_input = draw(s, 4 * width, inputs)
            from_state = draw(s, 4 * width, width)
            one = draw(s, 4 * width)
            other = draw(s, 4 * width)
            kernel = np.concatenate([gates(from_input), gates(from_state)])
            layers.append({"kernel": kernel, "bias": gates(one + other)})
            apart.append(one - other)
        return {
            "embedding": embedding,
            "layers": layers,
            "softmax": {"bias": np.zeros(self.c["V"], self.dtype)},
        }, apart

    def noise(self, k: int) -> Noise:
        g = np.random.default_rng([self.c["mask_seed"], k])
        B = self.c["B"]
        E = self.c["emb"]

        def mask(rate, *shape):
            keep = self.kept[rate]
            if keep is None:
                return None
            return g.random(shape) < keep

        words = mask("dropoute", self.c["V"], 1)
        embedding = mask("dropouti", 1, B, E)
        outputs = []
        weights = []
        for layer, width in enumerate(self.widths):
            dropped = mask("wdrop", 4 * width, width)
            weights.append(None if dropped is None else gates(dropped))
            outputs.append(
                mask("dropouth" if layer < len(self.widths) - 1 else "dropout", 1, B, width)
            )
        return jax.tree.map(jnp.asarray, Noise(embedding, tuple(outputs), words, tuple(weights)))

    def run(self):
        """Reported and minimised losses, gradient norms, evaluations,
        and named tensors at three times.
        """
        golden = self.golden
        tokens = jnp.asarray(batch(self.train, self.c["B"]))
        state = init_state(self.recipe, jax.random.key(0), self.c["B"], self.params)
        windows = golden["windows"]
        row = 0
        told = []
        evaluated = []
        tensors = {}
        apart = [1.0]
        mean = []
        moved = None  # of the biases' difference: at each step, and its average's terms
        for k, (T, rate) in enumerate(zip(windows["T"], golden["lr_of_step"], strict=True)):
            if k == windows["sgd_steps"]:
                tensors["after_sgd"] = self.named(state.params, apart[-1])
                state = switched(state)
            first = k % windows["per_epoch"] == 0
            row = 0 if first else row
            recipe = replace(
                self.recipe,
                optimizer=replace(self.recipe.optimizer, learning_rate=jnp.float32(rate)),
            )
            window = Window(
                tokens[row : row + T],
                tokens[row + 1 : row + T + 1],
                epoch=0,
                first=jnp.bool_(first),
            )
            state, metrics = step(recipe, state, window, self.noise(k))
            told.append((float(metrics.cost) / T, float(metrics.grad_norm)))
            moved = moved if k > windows["sgd_steps"] else rate
            apart.append(apart[-1] * (1 - moved * self.c["wdecay"]))
            moved = rate
            mean += [apart[-1]] if k > windows["sgd_steps"] else []
            row += T
            if (k + 1) % windows["per_epoch"] == 0:
                evaluated.append(
                    self.loss(state.evaluated, self.valid, golden["tokens"]["eval_batch_size"])
                )
        evaluated.append(self.loss(state.params, self.test, golden["tokens"]["test_batch_size"]))
        tensors["after_asgd"] = self.named(state.params, apart[-1])
        tensors["averaged_after_asgd"] = self.named(state.evaluated, np.mean(mean))
        return np.array(told).T, np.array(evaluated), tensors

    def loss(self, params, ids, rows):
        nats, predictions = stream_nats(self.recipe.model, params, ids, rows)
        return nats / self.recipe.optimizer.counted(predictions, rows)

    def named(self, params, apart) -> dict[str, np.ndarray]:
        """PyTorch's tensors."""
        found = {"encoder.weight": params["embedding"], "decoder.bias": params["softmax"]["bias"]}
        return {
            name: np.asarray(array, np.float64)
            for name, array in {
                **found,
                **torch_layers(params["layers"], self.apart, apart),
            }.items()
        }


def agreeing(golden: dict) -> int:
    """The steps until which the published code agrees with itself,
    float32 with float64, to 1e-4.
    """
    told = golden["expected"]
    off = np.abs(np.array(told["float32"]["raw_loss"]) / told["float64"]["raw_loss"] - 1) > 1e-4
    if off.any():
        return int(off.argmax())
    return len(off)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "wide"),
    [
        ("awd_lstm", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("awd_lstm", True), ("awd_lstm_plain", False), ("awd_lstm_plain", True))
        ),
    ],
)
def test_the_published_run(name, wide):
    golden = recorded(name)
    with jax.enable_x64(wide), jax.default_matmul_precision("highest"):
        (losses, norms), evaluated, tensors = Replay(golden, "float64" if wide else "float32").run()
    told = golden["expected"]["float64"]
    steps = None if wide else agreeing(golden)
    np.testing.assert_allclose(
        losses[:steps], told["raw_loss"][:steps], rtol=1e-6 if wide else 1e-4
    )
    np.testing.assert_allclose(
        norms[:steps], told["grad_norm"][:steps], rtol=1e-5 if wide else 1e-3
    )
    np.testing.assert_allclose(
        evaluated, golden["evaluations"]["float64"], rtol=1e-6 if wide else 1e-5
    )
    for when, named in tensors.items():
        for key, triple in golden["tensors"]["float64"][when].items():
            norm, *found = summary(named[key])
            assert norm == pytest.approx(triple[0], rel=1e-6 if wide else 1e-4), (when, key)
            if wide:
                np.testing.assert_allclose(
                    found, triple[1:], rtol=1e-6, atol=1e-6 * norm, err_msg=f"{when} {key}"
                )


def switches(nonmonotone: int, losses: list[float]) -> int | None:
    """After which validation, from 1, averaging starts."""
    recipe = jaxlm.preset("small").replace(optimizer="asgd", nonmonotone=nonmonotone).recipe
    memory = first_validations(recipe)
    rule = jax.jit(validated)
    for epoch, loss in enumerate(losses, 1):
        assert memory is not None
        memory = rule(recipe, memory, loss)
        if memory.switch.averaging:
            return epoch
    return None


def test_the_rule_of_the_switch():
    for case in recorded("awd_lstm")["nt_asgd_switch"]["cases"]:
        assert switches(case["nonmono"], case["validation"]) == case["switches_after_epoch"], case


@pytest.mark.parametrize("nonmonotone", [1, 2, 5])
def test_the_rule_is_the_published_condition(nonmonotone):
    rng = np.random.default_rng(nonmonotone)
    for _ in range(5):
        losses = [round(float(loss), 1) for loss in rng.normal(5, 0.3, 20)]
        seen = []
        expected = None
        for epoch, loss in enumerate(losses, 1):
            if len(seen) > nonmonotone and np.float32(loss) > min(
                map(np.float32, seen[:-nonmonotone])
            ):
                expected = epoch
                break
            seen.append(loss)
        assert switches(nonmonotone, losses) == expected
