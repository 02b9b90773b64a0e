"""Mixture of softmaxes (Yang et al. 2018):
trajectories that its published code really ran, with its noise and lengths.

The recording and its draws: tests/golden/published/README.md. All windows are padded to one length,
which is traced, and the plan says where they lie.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recordings import recorded, summary
from test_awd import gates, switched, torch_layers

import jaxlm
from jaxlm.config.recipe import Recipe
from jaxlm.data.windows import RandomLengths, batch
from jaxlm.models import stack
from jaxlm.models.noise import Noise
from jaxlm.runs.run import window_plan
from jaxlm.scoring.stream import eval_step, stream_nats
from jaxlm.training.step import init_state, read_window, train_step

CASES = recorded("mos")["cases"]


def mechanisms(case: dict) -> list[str]:
    """What a recorded case has beside the plain model."""
    config = case["config"]
    small = ["small batches"] if config["small_batch"] != config["B"] else []
    return [*small, *(name for name, rate in config["rates"].items() if rate)]


step = jax.jit(train_step, compiler_options={"xla_backend_optimization_level": 0})


class Replay:
    """The published run again: its weights, tokens, masks and drawn lengths,
    through the project's plan and step.
    """

    def __init__(self, case: dict, dtype: str):
        c = self.c = case["config"]
        self.case = case
        self.dtype = dtype
        self.kept = {name: 1 - rate if rate else None for name, rate in c["rates"].items()}
        self.widths = (*[c["hidden"]] * (c["layers"] - 1), c["hidden_last"])
        self.small = 0 if c["small_batch"] == c["B"] else c["small_batch"]
        kept = self.kept
        self.config = jaxlm.preset("small").replace(
            vocab_size=c["V"],
            embedding_size=c["emb"],
            hidden_sizes=self.widths,
            tied=True,
            experts=c["n_experts"],
            mixture_epsilon=1e-8,  # in the recording it stands in the words of `rule`
            locked_dropout=True,
            keep_embedding=kept["dropouti"],
            keep_output=kept["dropouth"],
            keep_last_output=kept["dropout"],
            keep_words=kept["dropoute"],
            keep_recurrent_weights=kept["wdrop"],
            keep_latent=kept["dropoutl"],
            optimizer="awd-lstm",
            cost="mean",
            learning_rate=c["lr"],
            clip_norm=c["clip"],
            weight_decay=c["wdecay"],
            activation_penalty=c["alpha"],
            temporal_penalty=c["beta"],
            hold=1e9,  # the rate never decays
            batch_size=c["B"],
            small_batch=self.small,
            bptt_length=c["bptt"],
            # the README's normal(bptt, 5); the lengths that it drew are recorded
            length_deviation=5.0,
            longest_window=max(case["T_nominal"]),
            epochs=c["epochs"],
        )
        model = replace(self.config.model, compute_dtype=dtype)
        self.recipe = Recipe(model, self.config.optimizer, self.config.schedule)
        g = np.random.default_rng(c["token_seed"])
        self.train, self.valid = (
            (g.random(n) ** 3 * (c["V"] - 1)).astype(np.int32) for n in case["n_train_valid"]
        )
        self.params, self.apart = self._weights(np.random.default_rng(c["weight_seed"]))

    def _weights(self, g):
        """The parameters; and of each layer the difference of
        PyTorch's two biases, which only decays.
        """
        c = self.c

        def draw(s, *shape):
            return g.uniform(-s, s, shape).astype(np.float32).astype(self.dtype)

        embedding = draw(0.1, c["V"], c["emb"])
        layers = []
        apart = []
        for inputs, width in zip((c["emb"], *self.widths), self.widths, strict=False):
            s = 1 / np.sqrt(width)
            kernels = draw(s, 4 * width, inputs), draw(s, 4 * width, width)
            one = draw(s, 4 * width)
            other = draw(s, 4 * width)
            layers.append(
                {"kernel": np.concatenate([*map(gates, kernels)]), "bias": gates(one + other)}
            )
            apart.append(one - other)
        s = 1 / np.sqrt(c["hidden_last"])
        K = c["n_experts"]
        D = c["emb"]
        head = {
            "prior": draw(s, K, c["hidden_last"]).T,
            "latent_kernel": draw(s, K * D, c["hidden_last"]).T,
            "latent_bias": draw(s, K * D),
            "bias": np.zeros(c["V"], self.dtype),
        }
        return {"embedding": embedding, "layers": layers, "softmax": head}, apart

    def noise(self, k: int) -> Noise:
        """Of step k; with small batches, those of all, one behind the other."""
        c = self.c
        g = np.random.default_rng([self.c["mask_seed"], k])

        def mask(rate, *shape):
            keep = self.kept[rate]
            if keep is None:
                return None
            return g.random(shape) < keep

        def one(rows: int) -> Noise:
            words = mask("dropoute", c["V"], 1)
            embedding = mask("dropouti", 1, rows, c["emb"])
            outputs = []
            weights = []
            for layer, width in enumerate(self.widths):
                dropped = mask("wdrop", 4 * width, width)
                weights.append(None if dropped is None else gates(dropped))
                outputs.append(
                    mask("dropouth" if layer < c["layers"] - 1 else "dropout", 1, rows, width)
                )
            latents = mask("dropoutl", 1, rows, c["n_experts"] * c["emb"])
            return Noise(embedding, tuple(outputs), words, tuple(weights), latents=latents)

        if not self.small:
            return jax.tree.map(jnp.asarray, one(c["B"]))
        return jax.tree.map(
            lambda *masks: jnp.stack(masks), *(one(self.small) for _ in range(c["B"] // self.small))
        )

    def plan(self):
        """The run's plan, but for the lengths drawn, which the file has."""
        drawn = self.case["T_nominal"]
        per_epoch = self.case["windows_per_epoch"]

        class Recorded(RandomLengths):
            def draw(self, rows: int, epoch: int) -> np.ndarray:
                return np.array(drawn[epoch * per_epoch : (epoch + 1) * per_epoch])

        plan = window_plan(self.config, self.case["train_rows"])
        return replace(plan, random=Recorded(**vars(plan.random)))

    def run(self):
        """Losses and gradient norms of each step, rates and lengths, evaluations,
        and named tensors at three times.
        """
        c = self.c
        plan = self.plan()
        tokens = jnp.asarray(batch(self.train, self.c["B"]))
        state = init_state(self.recipe, jax.random.key(0), c["B"], self.params)
        told = []
        evaluated = []
        tensors = {}
        apart = [1.0]
        mean = []
        moved = 0.0  # of the biases' difference: at each step, and its average's terms
        switch = c["switch_after_epoch"] * plan.windows_in(0)
        for k in range(plan.total):
            if k == switch:
                tensors["after_sgd"] = self.named(state.params, apart[-1])
                state = switched(state)
            where = jax.tree.map(lambda column: column[0], plan.windows(k, 1, 1))
            window = read_window(tokens, where, plan.length, self.small)
            state, metrics = step(self.recipe, state, window, self.noise(k))
            rate = float(metrics.learning_rate) * float(where.rate)
            told.append(
                (
                    float(metrics.cost) / int(where.length),
                    float(metrics.grad_norm),
                    rate,
                    int(where.length),
                )
            )
            moved = moved if k > switch else rate
            apart.append(apart[-1] * (1 - moved * c["wdecay"]))
            moved = rate
            mean += [apart[-1]] if k > switch else []
            if plan.locate(k + 1)[1] == 0:
                nats, predictions = stream_nats(self.recipe.model, state.evaluated, self.valid, 10)
                evaluated.append(nats / self.recipe.optimizer.counted(predictions, 10))
        tensors["after_asgd"] = self.named(state.params, apart[-1])
        tensors["averaged_after_asgd"] = self.named(state.evaluated, np.mean(mean))
        ids = jnp.asarray(self.valid[:9, None])
        nats, _ = eval_step(
            self.recipe.model,
            state.params,
            ids[:-1],
            ids[1:],
            stack.zero_carry(self.recipe.model, 1, self.dtype),
        )
        return np.array(told).T, np.array(evaluated), tensors, -np.asarray(nats)[:, 0]

    def named(self, params, apart) -> dict[str, np.ndarray]:
        """PyTorch's tensors."""
        head = params["softmax"]
        found = {
            "encoder.weight": params["embedding"],
            "decoder.bias": head["bias"],
            "prior.weight": head["prior"].T,
            "latent.0.weight": head["latent_kernel"].T,
            "latent.0.bias": head["latent_bias"],
        }
        return {
            name: np.asarray(array, np.float64)
            for name, array in {
                **found,
                **torch_layers(params["layers"], self.apart, apart),
            }.items()
        }


def agreeing(told: dict) -> int:
    """The steps until which the published code agrees with itself,
    float32 with float64, to 1e-4 nats.
    """
    off = np.abs(np.array(told["raw_loss_float32"]) - told["raw_loss"]) > 1e-4
    if off.any():
        return int(off.argmax())
    return len(off)


# By default the one of most mechanisms at once; the others with the slow tests.
@pytest.mark.golden
@pytest.mark.parametrize(
    ("case", "wide"),
    [
        pytest.param(
            case,
            wide,
            id=f"{' '.join(mechanisms(case)) or 'plain'}, {'float64' if wide else 'float32'}",
            marks=[]
            if wide and case is max(CASES, key=lambda case: len(mechanisms(case)))
            else [pytest.mark.slow],
        )
        for case in CASES
        for wide in (False, True)
    ],
)
def test_the_published_run(case, wide):
    with jax.enable_x64(wide), jax.default_matmul_precision("highest"):
        replay = Replay(case, "float64" if wide else "float32")
        (losses, norms, rates, lengths), evaluated, tensors, log_p = replay.run()
    told = case["expected"]
    agree = agreeing(case["expected"])
    steps = None if wide else agree
    assert lengths.tolist() == case["T"]
    np.testing.assert_allclose(rates, case["lr_of_step"], rtol=1e-6)
    np.testing.assert_allclose(
        losses[:steps], told["raw_loss"][:steps], rtol=1e-6 if wide else 1e-4
    )
    np.testing.assert_allclose(
        norms[:steps], told["grad_norm"][:steps], rtol=1e-5 if wide else 1e-3
    )
    chaotic = not wide and agree < len(
        losses
    )  # the published code's own float32 run strays further than this
    np.testing.assert_allclose(
        evaluated, case["evaluations"], rtol=1e-6 if wide else 5e-5 if chaotic else 1e-5
    )
    np.testing.assert_allclose(
        log_p, case["final_logprob"], rtol=1e-6 if wide else 5e-3 if chaotic else 1e-4
    )
    for when, named in tensors.items():
        for key, triple in case["tensors"][when].items():
            norm, *found = summary(named[key])
            assert norm == pytest.approx(
                triple[0], rel=1e-6 if wide else 2e-3 if chaotic else 1e-4
            ), (when, key)
            if wide:
                np.testing.assert_allclose(
                    found, triple[1:], rtol=1e-6, atol=1e-6 * norm, err_msg=f"{when} {key}"
                )
