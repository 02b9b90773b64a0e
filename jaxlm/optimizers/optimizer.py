"""What every optimiser has: the fields of its config, and the functions that each kind defines."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import optax

from jaxlm.base.errors import JaxlmError
from jaxlm.base.fields import Section, choice, count, flag, number
from jaxlm.base.kinds import Kinds
from jaxlm.models.recurrent import Params, Recurrent


@dataclass(frozen=True)
class Optimizer(Section):
    """Clips a gradient by its global norm, then applies a rule; may average the parameters.

    Attributes:
        updates_rows: Whether the embedding's update stays in rows where its gradient does.
        averages_once_stale: Whether a Polyak average starts once the best validation is stale.
        forgotten_iterates: How many first iterates a Polyak average leaves out.
        windows_as_published: Whether epochs of random windows end as AWD-LSTM's code ends them.
    """

    updates_rows: ClassVar[bool] = True
    averages_once_stale: ClassVar[bool] = False
    forgotten_iterates: ClassVar[int] = 0
    windows_as_published: ClassVar[bool] = False

    learning_rate: float = number(
        1.0, "rate before the schedule's factor", above=0, kind_specific=True
    )
    clip_norm: float | None = number(
        5.0,
        "largest global norm of the gradient (none: no clipping)",
        above=0,
        optional=True,
        kind_specific=True,
    )
    restart_factor: float | None = number(
        None,
        "factor on the rate, each time a window's cost or gradient is not finite and the run goes "
        "back to its best checkpoint (none: the run ends; 0.9 in arXiv:2211.01848)",
        above=0,
        below=1,
    )
    average_decay: float | None = number(
        None,
        "decay of an exponential average of the parameters, which evaluation then uses (none: no "
        "average)",
        "per window",
        above=0,
        below=1,
    )
    two_tailed: bool = flag(
        False,
        "two-tailed averaging: evaluation uses the longer of two averages of the last iterates, "
        "which the shorter one replaces at a validation where it is as good (arXiv:2209.12581, "
        "algorithm 1)",
        excludes=("average_decay",),
    )
    cost: str = choice(
        "sum",
        "what is minimised: nats summed over the steps and averaged over the batch, or their mean "
        "over all tokens",
        ("sum", "mean"),
    )
    dropout_samples: int = count(
        1,
        "dropout samples D of each row of a window, each with a carry of its own: the cost is -ln "
        "of a token's mean probability over them (arXiv:2211.01848); masks of words and weights "
        "are one for all",
        "samples",
        low=1,
        high=1000,
    )
    activation_penalty: float | None = number(
        None,
        "weight of the mean square of the last layer's outputs after dropout: AR (none: absent; "
        "arXiv:1708.01009)",
        low=0,
    )
    temporal_penalty: float | None = number(
        None,
        "weight of the mean square of the differences between steps of the last layer's outputs "
        "before dropout: TAR (none: absent)",
        low=0,
    )
    l2_penalty: float | None = number(
        None,
        "weight of half the squared norm of all parameters, in the cost whose gradient is clipped "
        "(none: absent)",
        low=0,
    )

    @property
    def averages_after(self) -> int | None:
        """The field `nonmonotone`; None: the kind or the config has no Polyak average."""
        return getattr(self, "nonmonotone", None)

    @property
    def averages_latest(self) -> int | None:
        """The field `average_latest`; None: no number of validations starts a Polyak average."""
        return getattr(self, "average_latest", None)

    @property
    def averages(self) -> bool:
        """Whether evaluation uses an average of the parameters."""
        return self.averages_after is not None or self.average_decay is not None or self.two_tailed

    def check_model(self, model: Recurrent) -> None:
        """Raises JaxlmError where the optimiser means nothing for a model."""
        of_units = {*model.dropout_fields} - {"keep_words", "keep_recurrent_weights"}
        if self.dropout_samples > 1 and (not of_units or model.sampled_words):
            raise JaxlmError(
                f"dropout_samples is {self.dropout_samples}: samples differ in the units that are "
                "dropped, and their softmax sums all words; set keep_output or another dropout of "
                "units, leave sampled_words out, or set dropout_samples to 1"
            )

    def counted(self, predictions: int, rows: int) -> int:
        """How many tokens the summed nats of an evaluation are divided by.

        Args:
            predictions: Tokens that were predicted.
            rows: Rows of the text, whose first tokens were not predicted.
        """
        return predictions

    def keeps_rows(self, tied: bool) -> bool:
        """Whether the embedding's gradient has one row for each token read, or for each word.

        TensorFlow's IndexedSlices are rows of tokens: the global norm counts each occurrence of a
        word by itself. A tied embedding has a gradient at every word.

        Args:
            tied: Whether the softmax's kernel is the embedding.
        """
        return False

    def norm(self, grads: Params) -> jax.Array:
        """The global norm of a gradient, by which the optimiser clips."""
        return optax.tree.norm(grads)

    def transformation(
        self, model: Recurrent, factor: jax.Array | float
    ) -> optax.GradientTransformationExtraArgs:
        """Clipping, then the rule. Rebuilding it at every step is safe: it holds no state.

        Args:
            model: The config's model.
            factor: The factor on the learning rate.

        Returns:
            A transformation whose `update` takes, beside gradients, state and parameters,
            `grad_norm` (as `norm` gives it) and `averaging` (whether a Polyak average has started).
        """
        if self.clip_norm is None:
            return optax.chain(self.rule(model, factor))
        return optax.chain(clip_by_given_norm(self.clip_norm), self.rule(model, factor))

    def rule(self, model: Recurrent, factor: jax.Array | float) -> optax.GradientTransformation:
        """The transformation without clipping.

        Args:
            model: The config's model.
            factor: The factor on the learning rate.

        Returns:
            A transformation of optax.
        """
        raise NotImplementedError


OPTIMIZERS = Kinds[Optimizer]()


def average_latest(**relations: Any) -> Any:
    """The field `average_latest`, for kinds with a Polyak average."""
    return count(
        None,
        "the average of nonmonotone starts after N validations at the latest (none: it may never "
        "start)",
        "validations",
        low=1,
        **relations,
    )


def clip_by_given_norm(
    max_norm: jax.Array | float, added: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, by a norm that `update` is given.

    Args:
        max_norm: The largest norm.
        added: A number added to the norm.

    Returns:
        A transformation whose `update` takes `grad_norm`.
    """

    def update(
        updates,
        state,
        params=None,
        **extra,
    ):
        norm = extra["grad_norm"] + added

        def clip(gradient):
            return jax.lax.select(norm < max_norm, gradient, gradient / norm * max_norm)

        return jax.tree.map(clip, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def matrices(params: Params) -> Any:
    """For each parameter, whether Adam's weight decay acts on it: on matrices, not on biases."""

    def is_matrix(path, leaf):
        return leaf.ndim > 1 and not path[-1].key.endswith("bias")

    return jax.tree_util.tree_map_with_path(is_matrix, params)
