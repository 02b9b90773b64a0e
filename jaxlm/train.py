"""The host loop: compile once, train, log, validate, save, resume."""

import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import checkpoint
from jaxlm.checkpoint import Manifest
from jaxlm.config import Config, differences
from jaxlm.data.batching import batch, check_fits, locate, num_windows
from jaxlm.data.corpora import EMBEDDED, SPLITS, Corpus, load_corpus
from jaxlm.errors import Diverged, JaxlmError, RunDirError
from jaxlm.evaluate import perplexity, stream_nats
from jaxlm.metrics import MetricsLog, Progress, read_metrics
from jaxlm.models.lstm import Params
from jaxlm.step import TrainState, init_state, train_windows

MAY_CHANGE = ("epochs", "windows_per_call", "checkpoint_every", "corpus")  # the corpus's hash is compared instead


@dataclass(frozen=True)
class EpochResult:
    """Perplexities of one epoch, counted from 1, and the rate that it was trained with."""

    epoch: int
    learning_rate: float
    train_perplexity: float
    valid_perplexity: float


@dataclass(frozen=True)
class TrainResult:
    """What a training came to."""

    config: Config
    corpus: str
    run_dir: Path | None
    state: TrainState
    epochs: list[EpochResult] = field(default_factory=list)
    test_perplexity: float | None = None  # of the last parameters; None if a signal ended the training
    best_test_perplexity: float | None = None  # of the checkpoint that was best on validation, where one is kept
    stopped_by: int | None = None  # the signal's number

    @property
    def params(self) -> Params:
        return self.state.params


def train(config: Config, corpus: str | Path | Corpus | None = None, run_dir: str | Path | None = None, *,
          params: Params | None = None, resume: bool = False, steps: int | None = None,
          data_dir: str | Path | None = None, quiet: bool = False) -> TrainResult:
    """Trains one model and tests it.

    `corpus` is a Corpus or what `--corpus` takes (default: the config's own); `params` replaces the fresh
    parameters; `steps` ends the training after so many windows. With `run_dir` everything is kept there and
    `resume` goes on from its newest intact checkpoint; without one nothing is kept but what is returned.
    SIGTERM and SIGINT end the training after the current call, saved. Raises JaxlmError (see `errors`).
    """
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(quiet=quiet))
        if not isinstance(corpus, Corpus):
            corpus = load_corpus(config.data.corpus if corpus is None else corpus, data_dir=data_dir,
                                 max_vocab=config.model.vocab_size, min_count=config.data.min_count,
                                 lowercase=config.data.lowercase)
        config = _fitted(config, corpus, params)
        folder = Path(run_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxlm-")))
        stack.enter_context(checkpoint.lock(folder))
        run = _Run(config, corpus, folder, kept=run_dir is not None, progress=progress)
        run.tell_corpus()
        state, offset = run.resumed(params) if resume else run.fresh(params)
        run.log = stack.enter_context(MetricsLog(folder, corpus.name, offset=offset, tensorboard=run.kept))
        stop = stack.enter_context(_signals())
        state = run.epochs(state, steps, stop)
        return run.finish(state, stop.signal)
