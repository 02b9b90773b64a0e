"""Many trainings in one program: members of equal shapes, which differ in numbers, seeds and parameters.

Letters: `M` members. All read the same windows of the corpus, each in its own epoch; one member's step is
`train_step`, and nothing that a member does reaches another.
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm.config.config import Config, Hyper
from jaxlm.data.corpora import Corpus
from jaxlm.data.windows import num_windows
from jaxlm.models.lstm import Params
from jaxlm.report.metrics import MetricsLog, read_metrics
from jaxlm.runs import checkpoint
from jaxlm.runs import directory as rundir
from jaxlm.runs.loop import floors, log_epoch, new_state, perplexity_of_costs
from jaxlm.runs.manifest import Manifest
from jaxlm.scoring.stream import perplexity, stream_nats
from jaxlm.sweeps.results import Trial
from jaxlm.training.step import Metrics, TrainState, read_window, train_step


def stack(state: TrainState, hyper: Hyper, size: int) -> tuple[TrainState, Hyper]:
    """A group of `size` equal members: the leaves of state and numbers with an axis M before them."""
    return jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * size), (state, _numbers(hyper)))


def put(group: tuple[TrainState, Hyper], slot: int, state: TrainState, hyper: Hyper) -> tuple[TrainState, Hyper]:
    """The group with another member in a slot; the old group's arrays are donated."""
    return _put(group, jnp.int32(slot), (state, _numbers(hyper)))


def take(group: Any, slot: int) -> Any:
    """One member's leaves of any tree with an axis M."""
    return jax.tree.map(lambda leaf: leaf[slot], group)


@partial(jax.jit, static_argnames=("bptt_length", "max_windows", "vmapped"), donate_argnames="states")
def train_members(states: TrainState, hypers: Hyper, epochs: jax.Array, live: jax.Array, tokens: jax.Array,
                  index: jax.Array, count: jax.Array, *, bptt_length: int, max_windows: int, vmapped: bool
                  ) -> tuple[TrainState, Metrics]:
    """`count` (traced, at most `max_windows`) windows of every member, from window `index` of its own epoch on.

    states and hypers [M, ...], epochs [M] (from 0), live [M], tokens [N // B, B] -> states, metrics [M, max_windows].
    Members share each operation (`vmapped`) or follow one another, and then a dead one costs nothing. Of a window
    whose cost or gradient is not finite no update is kept, and the member goes on with the next.
    """

    def one(state: TrainState, hyper: Hyper, epoch: jax.Array, count: jax.Array) -> tuple[TrainState, Metrics]:
        def body(done, loop):
            state, metrics = loop
            new_state, new = train_step(state, hyper, replace(read_window(tokens, index + done, bptt_length),
                                                              epoch=epoch))
            new_state = replace(new_state, step=state.step + 1)  # also past a window that changed nothing
            return new_state, jax.tree.map(lambda all, one: all.at[done].set(one), metrics, new)

        return lax.fori_loop(0, count, body, (state, Metrics(*(jnp.zeros(max_windows) for _ in range(3)))))

    if vmapped:
        return jax.vmap(one, in_axes=(0, 0, 0, None))(states, hypers, epochs, count)
    return lax.map(lambda member: one(*member), (states, hypers, epochs, jnp.where(live, count, 0)))


@partial(jax.jit, donate_argnums=0)
def _put(group, slot, member):
    return jax.tree.map(lambda all, one: all.at[slot].set(one), group, member)


def _numbers(hyper: Hyper) -> Hyper:
    return jax.tree.map(jnp.float32, hyper)


class Member:
    """One of the trainings as its run directory has it, begun or gone on with.

    It is an ordinary run: `jaxlm evaluate`, `plot` and `train --resume` take it. The caller holds the directory's
    lock in `held`, where the files that are open are closed first. Raises JaxlmError.
    """

    def __init__(self, config: Config, corpus: Corpus, folder: Path, kept: bool, record: Trial, held: ExitStack):
        self.config, self.corpus, self.folder, self.kept = config, corpus, folder, kept
        found, offset = None, None
        if (folder / "config.json").exists():
            found, offset, _ = rundir.go_on(folder, config, corpus)
        else:
            rundir.begin(folder, config, corpus)
        self._state = new_state(config) if found is None else found.state
        self.step = int(self._state.step)
        self.windows = num_windows(len(corpus.train) // config.train.batch_size, config.train.bptt_length)
        self.log = held.enter_context(MetricsLog(folder, corpus.name, offset=offset, tensorboard=False))
        valid = tuple(row["valid_perplexity"] for row in read_metrics(folder) if row["kind"] == "epoch")
        self.record = replace(record, valid_perplexities=valid)
        self._costs = self.log.epoch_costs(self.epoch + 1)
        self._since, self._saved = time.perf_counter(), self.step

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.windows

    @property
    def finished(self) -> bool:
        return self.epoch >= self.config.train.epochs

    def begin(self) -> TrainState:
        """The state to train from, handed over."""
        self._since = time.perf_counter()
        return self.__dict__.pop("_state")

    def trained(self, metrics: Metrics, count: int) -> str | None:
        """Writes the first `count` windows of metrics down; a sentence where one of them ends the training."""
        cost, norm, rate = (np.asarray(values)[:count] for values in (metrics.cost, metrics.grad_norm,
                                                                      metrics.learning_rate))
        bad = ~np.isfinite(cost + norm)
        done = int(bad.argmax()) if bad.any() and self.config.train.on_nonfinite == "stop" else len(cost)
        self.log.windows(self.step + 1, self.epoch + 1, cost[:done], norm[:done], rate[:done])
        if done < len(cost):
            return (f"window {self.step + done + 1} (epoch {self.epoch + 1}) has cost {cost[done]} and gradient norm "
                    f"{norm[done]} at learning rate {rate[done]:g}")
        self.step += done
        self._costs += cost.tolist()
        self._rate = float(rate[0])
        return None

    def end_epoch(self, valid_perplexity: float) -> None:
        """Writes the result of the epoch that has just ended."""
        epoch = self.epoch
        log_epoch(self.log, self.config, self.corpus, epoch=epoch, step=self.step, learning_rate=self._rate,
                  train_perplexity=perplexity_of_costs(self._costs, self.config.train.bptt_length),
                  valid_perplexity=valid_perplexity)
        now = time.perf_counter()
        self.log.timing(epoch=epoch, seconds=now - self._since)
        self.record = replace(self.record, seconds=self.record.seconds + now - self._since,
                              valid_perplexities=(*self.record.valid_perplexities, valid_perplexity))
        self._costs, self._since = [], now

    def save(self, state: TrainState) -> None:
        if self.kept and self.step != self._saved:
            self.log.sync()
            at_edge = self.step % self.windows == 0
            checkpoint.save(self.folder, state, self.config, self.corpus.vocab, Manifest(
                step=self.step, epoch=self.epoch, valid_perplexity=self.record.valid_perplexity if at_edge else None,
                corpus=rundir.named(self.corpus)))
            self._saved = self.step

    def test(self, params: Params) -> float:
        """The test perplexity, at batch 1, every prediction; ends the run."""
        value = perplexity(*stream_nats(params, self.config.hyper, self.corpus.test))
        self.log.result("test", checkpoint="last", step=self.step, test_perplexity=value,
                        **floors(self.corpus, "test"))
        self.log.sync()
        return value
