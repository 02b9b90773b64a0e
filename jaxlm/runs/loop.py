"""The one host loop: train, log, validate, save; for a run alone and for the members of a sweep."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Integer

from jaxlm.config.settings import TrainConfig
from jaxlm.data.windows import batch
from jaxlm.distributed import hosts
from jaxlm.distributed.mesh import put_rows
from jaxlm.runs.group import Group
from jaxlm.runs.run import Run
from jaxlm.training.members import member_at
from jaxlm.training.step import Metrics

WHOLE_TOKENS = 1 << 26  # of a split, up to which all of it is put on the device

Take = Callable[
    [int, int], tuple[Integer[Array, "R B"], int]
]  # (row, then) -> tokens, and the row they begin with


class Observer:
    """What whoever started the loop does along the way; nothing, unless a method is overridden."""

    def stopped(self) -> int | None:
        """The signal that asks to stop, if there is one. Asked once after each call."""
        return None

    def trained(self, group: Group) -> None:
        """After each call of windows."""

    def doing(self, what: str) -> None:
        """Before what takes time between windows: "validating" or "saving"."""

    def diverged(self, group: Group, slot: int, problem: str) -> None:
        """A window was not finite: ends the run, or raises. The slot must be empty afterwards."""

    def epoch_ended(self, group: Group, stopping: bool) -> None:
        """After an epoch is validated, logged and saved: may fill free slots, unless a signal asks to stop."""


def fit(group: Group, observer: Observer) -> int | None:
    """Trains a group's runs until none is left, or a signal asks to stop, which is returned.

    All runs of a group are at the same window of their epochs. At an epoch's end each is validated; there, at the last
    window, at a signal, and every `checkpoint_every` windows, each is saved. The metrics of a call are logged while the
    device computes the next one.

    Raises JaxlmError where a file cannot be read or written, and what the observer raises.
    """
    signal = observer.stopped()
    if signal is not None or not (runs := _unfinished(group)):
        return signal
    with feed(runs[0].corpus.train, runs[0].config.train, group.mesh) as take:
        done = None  # the last call, if it is not logged yet
        while signal is None and (runs := _unfinished(group)):
            some = runs[0]
            ahead = done[-1] if done else 0  # windows that are not logged yet
            plan = some.plan
            step = some.step + ahead
            edge = min(run.edge_after(run.step + ahead) - run.step for run in runs) - ahead
            count = min(edge, some.config.train.windows_per_call)
            epoch, index = plan.locate(step)
            tokens, first_row = take(
                plan.row(index, epoch), plan.row(*reversed(plan.locate(step + count)))
            )
            metrics = group.train(tokens, first_row, count, ahead)
            if done:
                _log(group, observer, *done)
            done = metrics, count
            jax.block_until_ready(metrics)
            signal = observer.stopped()
            if signal is not None or count == edge:
                _log(group, observer, *done)
                done = None
                _end_call(group, observer, signal)
    return signal


def _log(group: Group, observer: Observer, metrics: Metrics, count: int) -> None:
    """Logs a call's windows, and ends each run of which a window was not finite."""
    columns = jax.tree.map(np.atleast_2d, jax.device_get(metrics))  # [M, W], also of a run alone
    for slot, run in enumerate(
        group.runs
    ):  # (some may have ended since the call began, and none has come)
        if run is not None and (problem := run.trained(member_at(columns, slot), count)):
            observer.diverged(group, slot, problem)
    observer.trained(group)


def _end_call(group: Group, observer: Observer, signal: int | None) -> None:
    """Validates, logs and saves where an epoch or a call's edge asks for it."""
    runs = {slot: run for slot, run in enumerate(group.runs) if run is not None}
    ended = any(run.index == 0 for run in runs.values())
    if ended:
        observer.doing("validating")
        perplexities = group.validate()
        for slot, run in runs.items():
            run.end_epoch(perplexities[slot])
    for slot, run in runs.items():
        if run.finished or run.step == run.edge_after(run.step - 1) or signal is not None:
            observer.doing("saving")
            hosts.together(partial(run.save, group.state(slot)))
    if ended:
        observer.epoch_ended(group, signal is not None)
        for run in filter(None, group.runs):
            run.start_clock()


def _unfinished(group: Group) -> list[Run]:
    """The runs that have windows left to train."""
    return [run for run in group.runs if run is not None and not run.finished]


@contextmanager
def feed(
    ids: Integer[np.ndarray, " N"], counts: TrainConfig, mesh: Mesh | None = None
) -> Iterator[Take]:
    """Yields `take(row, then)`: tokens from a row of [N // B, B] on or from before it, and the row they begin with.

    Of ids in memory, and of at most `WHOLE_TOKENS` in a file, the tokens are all of [N // B, B], put on the device
    once. Of a larger memory-mapped file they are [windows_per_call * T + 1, B] for the longest window's T, padded at
    the epoch's end, so that nothing compiles anew; while one slab is in use a thread reads that from row `then` on and
    puts it on the device.

    Devices of a mesh have the batch's rows that `put_rows` gives them, and a process reads no others. `take` raises
    DataError where the file cannot be read any more.
    """
    T = counts.longest
    B = counts.batch_size
    if not isinstance(ids, np.memmap) or len(ids) <= WHOLE_TOKENS:
        whole = put_rows(mesh, (len(ids) // B, B), lambda rows: batch(ids, B, rows))
        yield lambda row, then: (whole, 0)
        return

    height = counts.windows_per_call * T + 1

    def slab(row: int) -> Integer[Array, "R B"]:
        def read(rows: slice) -> np.ndarray:
            found = batch(ids, B, rows, row, row + height)
            return np.pad(found, ((0, height - len(found)), (0, 0)))

        return put_rows(mesh, (height, B), read)

    ahead: dict[int, Future[Array]] = {}
    with ThreadPoolExecutor(1, "feed") as reader:

        def take(row: int, then: int) -> tuple[Integer[Array, "R B"], int]:
            found = ahead.pop(row, None) or reader.submit(slab, row)
            ahead.clear()
            ahead[then] = reader.submit(slab, then)
            return found.result(), row

        yield take
