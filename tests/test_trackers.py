"""report/trackers.py: what is sent, and that no tracker can end a run."""

import resource
import struct
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import jax
import pytest
from reports import opened

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.cli import main
from jaxlm.report.trackers import tracked

CONFIG = jaxlm.preset("test").replace(
    corpus="embedded-tiny", batch_size=50, bptt_length=20, epochs=1, vocab_size=600
)
NAN = float("nan")


class Recorder(types.ModuleType):
    """A module with Weights & Biases' interface."""

    def __init__(self, fails_at: int | None = None):
        super().__init__("wandb")
        self.calls: list[tuple] = []
        self._fails_at = fails_at

    def init(self, **options):
        self.calls.append(("init", options))

    def log(self, values, step):
        if self._fails_at == step:
            raise ConnectionError("no route to host")
        self.calls.append((step, values))

    def finish(self):
        self.calls.append(("finish",))


def test_a_run_calls_on_metrics_with_every_window_epoch_and_test():
    seen = []
    result = jaxlm.train(
        CONFIG, quiet=True, on_metrics=lambda step, values: seen.append((step, dict(values)))
    )
    windows = [(step, values) for step, values in seen if "train/cost" in values]
    assert [step for step, _ in windows] == list(range(1, len(windows) + 1))
    assert set(windows[0][1]) == {"train/cost", "train/grad_norm", "train/learning_rate"}
    (epoch,) = [values for _, values in seen if "epoch/valid_perplexity" in values]
    assert epoch["epoch/valid_perplexity"] == result.epochs[0].valid_perplexity
    assert (
        seen[-1][0] == len(windows)
        and seen[-1][1]["test/test_perplexity"] == result.test_perplexity
    )


def test_the_tests_of_the_last_and_of_the_best_parameters_have_tags_of_their_own(tmp_path):
    seen = []
    with opened(tmp_path, on_metrics=lambda _, values: seen.append(values)) as log:
        for which, value in (("last", 113.0), ("best", 112.0)):
            log.result("test", checkpoint=which, test_perplexity=value)
    assert seen == [{"test/test_perplexity": 113.0}, {"best/test_perplexity": 112.0}]


def test_the_command_sends_a_run_s_metrics_to_a_tracker(tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    flags = [
        "--preset",
        "test",
        "--corpus",
        "embedded-tiny",
        "--batch-size",
        "50",
        "--bptt-length",
        "20",
        "--steps",
        "3",
        "--track",
        "wandb",
    ]
    assert main(["train", *flags, "--run-dir", str(tmp_path / "mine")]) == 0
    assert recorder.calls[0][0] == "init" and recorder.calls[0][1]["name"] == "mine"
    assert recorder.calls[0][1]["config"]["learning_rate"] == "1.0"
    assert [call[0] for call in recorder.calls[1:4]] == [1, 2, 3] and recorder.calls[-1] == (
        "finish",
    )


def test_of_many_processes_the_first_alone_opens_a_tracker(tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    flags = ["--preset", "test", "--corpus", "embedded-tiny", "--steps", "1", "--track", "wandb"]
    assert main(["train", *flags, "--run-dir", str(tmp_path / "run")]) == 0
    assert recorder.calls == []


def test_a_tracker_that_fails_warns_once_is_closed_and_the_run_ends_well(tmp_path, monkeypatch):
    recorder = Recorder(fails_at=2)
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    (tmp_path / "run").mkdir()
    with (
        tracked("wandb", tmp_path / "run", {}) as send,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        with opened(tmp_path / "run", on_metrics=send) as log:
            log.windows(1, 1, [1, 2, 3], [1, 2, 3], [1, 1, 1])
    assert [str(one.message) for one in caught] == [
        "wandb's tracking ends here, the run continues: no route to host"
    ]
    assert recorder.calls[1:] == [
        (1, {"train/cost": 1, "train/grad_norm": 1, "train/learning_rate": 1}),
        ("finish",),
    ]
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 3


@pytest.mark.parametrize(
    "name, message",
    [
        ("mlflow", r"expected one of tensorboard, wandb; others take .*on_metrics"),
        ("wandb", "wandb needs, cannot be imported .*: pip install wandb"),
        ("tensorboard", r"pip install 'jaxlm\[tensorboard\]'"),
    ],
)
def test_unknown_and_missing_trackers_are_one_sentence(name, message, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for module in ("tensorboardX", "tensorboardX.event_file_writer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(JaxlmError, match=message), tracked(name, tmp_path, {}):
        pass


def test_a_tracker_whose_import_raises_anything_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "wandb.py").write_text("raise RuntimeError('no GPU\\nfound')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with (
        pytest.raises(JaxlmError, match="wandb cannot be opened: no GPU found"),
        tracked("wandb", tmp_path, {}),
    ):
        pass


def events(run: Path) -> list[Any]:
    """All events of a run's TensorBoard files, in the order of the files' names."""
    found = []
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    for path in sorted((run / "tensorboard").iterdir()):
        data = path.read_bytes()
        assert ".tfevents." in path.name
        while data:
            (size,) = struct.unpack_from("<Q", data)
            found.append(event.FromString(data[12 : 12 + size]))
            data = data[size + 16 :]
    return found


def test_tensorboard_has_every_window_and_result_at_its_step(tmp_path):
    pytest.importorskip("tensorboardX")
    with tracked("tensorboard", tmp_path, {}) as send, opened(tmp_path, on_metrics=send) as log:
        log.windows(1, 1, [1, 2], [3, NAN], [0.5, 0.5])
        log.result(
            "epoch", epoch=1, valid_perplexity=123.0, train_perplexity=1e300, checkpoint="last"
        )
        kept = log.sync()
    with (
        tracked("tensorboard", tmp_path, {}) as send,
        opened(tmp_path, prefix=kept, on_metrics=send) as log,
    ):
        log.windows(3, 2, [4], [4], [0.5])
        kept = log.sync()
    with (
        tracked("tensorboard", tmp_path, {}) as send,
        opened(tmp_path, prefix=kept, on_metrics=send) as log,
    ):
        log.result("test", checkpoint="last", test_perplexity=9.0)  # a finished run, tested again
    seen = events(tmp_path)
    scalars = {
        (one.step, value.tag): value.simple_value for one in seen for value in one.summary.value
    }
    assert scalars.pop((2, "train/grad_norm")) != scalars[2, "train/cost"] == 2
    assert scalars[2, "epoch/valid_perplexity"] == 123 and scalars[
        2, "epoch/train_perplexity"
    ] == float("inf")
    assert [scalars[step, "train/cost"] for step in (1, 2, 3)] == [1, 2, 4] and len(scalars) == 11
    assert [one.step for one in seen if one.HasField("session_log")] == [
        1,
        3,
        4,
    ]  # hides what was logged from there on


def test_a_full_disk_ends_tensorboards_file_with_one_warning(tmp_path):
    pytest.importorskip("tensorboardX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with tracked("tensorboard", tmp_path, {}) as send:
                for step in range(1, 9):
                    send(step, {"cost": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [
        str(one.message) for one in caught if "tensorboard's tracking ends here" in str(one.message)
    ]
    assert len(caught) <= 2
