"""What the tests of metrics and pictures share."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.base.files import Folder
from jaxlm.runs.metrics import MetricsLog

INTRUDERS = ["link", "fifo", "directory", "hard link"]


@contextmanager
def opened(
    folder: Path, corpus: str = "ptb", bptt_length: int = 20, **options: Any
) -> Iterator[MetricsLog]:
    """A log in a folder."""
    with Folder.open(folder) as held, ExitStack() as files:
        yield MetricsLog(held, files, corpus, bptt_length, **options)


def run(folder: Path, epochs: int = 3, windows: int = 40, **result: Any) -> Path:
    """A run whose perplexity falls from epoch to epoch; `result` changes what it says of each."""
    folder.mkdir(exist_ok=True)
    with opened(folder) as log:
        for epoch in range(1, epochs + 1):
            cost = np.linspace(6, 5, windows) / epoch**0.1 * 20
            log.windows((epoch - 1) * windows + 1, epoch, cost, cost, np.full(windows, 0.5**epoch))
            values = {
                "epoch": epoch,
                "train_perplexity": np.exp(cost.mean() / 20),
                "valid_perplexity": 300 / epoch,
                "floor_valid": 90.0,
                "preset": "$mall_",
            }
            log.result("epoch", **values | result)
        log.result("test", test_perplexity=118.4, checkpoint="last")
    return folder


def intrude(path: Path, intruder: str) -> Path:
    """Puts something else than a file of its own in a file's place;
    the file that it leads to, if any.
    """
    path.unlink(missing_ok=True)
    target = path.parent.parent / "precious"
    target.write_text("precious")
    if intruder == "link":
        path.symlink_to(target)
    elif intruder == "hard link":
        path.hardlink_to(target)
    elif intruder == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    return target


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    assert path.read_bytes().startswith(b"\x89PNG")
    return imread(path)[..., :3]


def ink(path: Path) -> float:
    """The share of pixels that are not white."""
    return float((pixels(path) < 0.97).any(axis=2).mean())


def has(path: Path, colour: str) -> bool:
    from matplotlib.colors import to_rgb

    return bool((np.abs(pixels(path) - to_rgb(colour)) < 0.02).all(axis=2).sum() > 50)
