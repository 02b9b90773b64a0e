"""report/trackers.py: what is sent, and that no tracker can end a run."""

import sys
import types
import warnings

import pytest

import jaxlm
from jaxlm.cli import main
from jaxlm.errors import JaxlmError
from jaxlm.report.trackers import tracked

CONFIG = jaxlm.preset("test").replace(corpus="embedded-tiny", batch_size=50, bptt_length=20, epochs=1, vocab_size=600)


class Recorder(types.ModuleType):
    """A module with Trackio's interface."""

    def __init__(self, fails_at: int | None = None):
        super().__init__("trackio")
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
    result = jaxlm.train(CONFIG, quiet=True, on_metrics=lambda step, values: seen.append((step, dict(values))))
    windows = [(step, values) for step, values in seen if "train/cost" in values]
    assert [step for step, _ in windows] == list(range(1, len(windows) + 1))
    assert set(windows[0][1]) == {"train/cost", "train/grad_norm", "train/learning_rate"}
    (epoch,) = [values for _, values in seen if "epoch/valid_perplexity" in values]
    assert epoch["epoch/valid_perplexity"] == result.epochs[0].valid_perplexity
    assert seen[-1] == (len(windows), seen[-1][1]) and seen[-1][1]["test/test_perplexity"] == result.test_perplexity


def test_the_command_sends_a_run_s_metrics_to_a_tracker(tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "trackio", recorder)
    assert (
        main(
            [
                "train",
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
                "--run-dir",
                str(tmp_path / "mine"),
                "--track",
                "trackio",
            ]
        )
        == 0
    )
    assert recorder.calls[0][0] == "init" and recorder.calls[0][1]["name"] == "mine"
    assert recorder.calls[0][1]["config"]["learning_rate"] == "1.0"
    assert [call[0] for call in recorder.calls[1:4]] == [1, 2, 3] and recorder.calls[-1] == ("finish",)


def test_a_tracker_that_fails_warns_once_and_the_run_ends_well(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", Recorder(fails_at=2))
    with tracked("trackio", "run", {}) as send, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = jaxlm.train(CONFIG, quiet=True, steps=5, on_metrics=send)
    assert result.test_perplexity is not None
    assert [str(one.message) for one in caught if "no route to host" in str(one.message)] and len(
        [one for one in caught if "tracking ends" in str(one.message)]
    ) == 1


@pytest.mark.parametrize(
    ("name", "message"), [("nothing", "expected wandb, trackio or mlflow"), ("mlflow", "pip install mlflow")]
)
def test_unknown_and_missing_trackers_are_one_sentence(name, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(JaxlmError, match=message), tracked(name, "run", {}):
        pass
