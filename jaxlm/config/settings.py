"""The parts of a config that the step does not see: the counts of a run, and its text."""

from dataclasses import dataclass

from jaxlm.config.fields import choice, count, flag, text


@dataclass(frozen=True)
class TrainConfig:
    """Counts of a run."""

    batch_size: int = count(60, "rows B that the token stream is cut into", "rows", low=1)
    bptt_length: int = count(20, "steps T that a gradient flows back through", "tokens", low=1)
    epochs: int = count(15, "passes over the training split", "epochs")
    seed: int = count(0, "seed of the initial parameters and of dropout", high=2**32 - 1)
    windows_per_call: int = count(16, "most windows that one jitted call trains", "windows", low=1, high=2**20)
    checkpoint_every: int = count(0, "save after every so many windows too, besides each epoch (0: never)", "windows")
    keep_last: int = count(2, "newest checkpoints to keep; the best on validation is kept besides", "checkpoints",
                           low=1)
    keep_every: int = count(0, "keep a checkpoint of every so many epochs for good too (0: none)", "epochs")
    on_nonfinite: str = choice("stop", "at a window whose cost or gradient is not finite: stop (exit code 3), or skip "
                                       "it and count it", ("stop", "skip"))

    def check(self) -> None:
        """Raises JaxlmError where two fields contradict each other."""


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it becomes words."""

    corpus: str = text("auto", "auto, ptb, embedded, embedded-tiny, or a path: a folder of train/valid/test text, one "
                               "file (split 90/5/5 by lines), or a folder that `jaxlm prepare` made")
    min_count: int = count(1, "rarer words become <unk>", "occurrences", low=1)
    lowercase: bool = flag(False, "lower-case the text")

    def check(self) -> None:
        """Raises JaxlmError where two fields contradict each other."""
