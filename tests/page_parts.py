"""What the tests of the report page share: contents whose every text is hostile."""

from dataclasses import replace
from typing import Any

import numpy as np

import jaxlm
from jaxlm.report.page import ModelView, RunRecord, SweepRecord
from jaxlm.report.sweep_results import Trial
from jaxlm.report.word_map import WordMap

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "'\"><img src=x onerror=alert(3)>",
    "&lt;b&gt;",
    "\u2028\u2029",
    "\ud800",
    "\x1b[2J\x00\x7f",
    "{{datum.x}}",
    "__proto__",
    "constructor",
    "",
    "a.b[c]",
    "javascript:alert(4)",
    "漢字",
    "\u202egnp.exe",
    "\ufffe\uffff",
]
NAN = float("nan")


def run_record(
    name: str = "run", seed: int = 0, corpus: str = "ptb", sha: str = "0" * 64, **changes: Any
) -> RunRecord:
    windows = [
        {
            "kind": "window",
            "step": step,
            "epoch": 1 + step // 6,
            "cost": 100.0 - step,
            "grad_norm": 1.0 + step % 3,
            "learning_rate": 1.0,
        }
        for step in range(12)
    ]
    epochs = [
        {
            "kind": "epoch",
            "epoch": epoch,
            "train_perplexity": 300 / epoch,
            "valid_perplexity": (310 + seed) / epoch,
            "floor_valid": 90.0,
        }
        for epoch in (1, 2)
    ]
    usual = RunRecord(
        name=name,
        windows=windows,
        epochs=epochs,
        tests=[
            {
                "kind": "test",
                "checkpoint": "last",
                "test_perplexity": 118.0 + seed,
                "unknown_test": 0.06,
            }
        ],
        path=f"/runs/{name}",
        config=jaxlm.preset("zaremba-small").replace(seed=seed),
        corpus={
            "name": corpus,
            "sha256": sha,
            "vocab_sha256": "1" * 64,
            "description": f"{corpus}: words",
        },
        sessions=[
            {
                "command": f"jaxlm train --seed {seed}",
                "versions": {"jax": "1"},
                "devices": [1, 1],
                "platform": {"machine": "x"},
            }
        ],
        checkpoints=[(12, 2, 155.0)],
        timing={1: {"seconds": 2.0, "words_per_second": 1000.0}},
    )
    return replace(usual, **changes)


def model_view(run: str = "run", words: list[str] | None = None) -> ModelView:
    words = words or [f"word{place}" for place in range(30)]
    near = [
        [(words[(place + step) % len(words)], 1 - step / 10) for step in (1, 2, 3)]
        for place in range(len(words))
    ]
    return ModelView(
        run,
        "last",
        WordMap(
            words,
            np.array([(place % 6 * 10.0, place // 6 * 10.0) for place in range(len(words))]),
            np.arange(len(words)) % 3,
            near,
            "PCA",
        ),
        {"test": [*((word, float(place)) for place, word in enumerate(words)), ("<eos>", NAN)]},
        [" ".join(words)],
        ["a note"],
    )


def sweep_record(count: int = 8, **changes: Any) -> SweepRecord:
    trials = [
        Trial(
            place,
            {
                "learning_rate": 0.5 * 2 ** (place % 4),
                "hidden_sizes": ((8,), (16, 8))[place % 2],
                "nesterov": bool(place % 3),
            },
            "done",
            2,
            (100.0 + 20 * place, 1.0),
            (110.0, NAN),
            (200.0, 100.0 + 20 * place),
        )
        for place in range(count)
    ]
    return replace(
        SweepRecord("sweep", {"name": "ptb", "sha256": "0" * 64}, trials, "jaxlm train --seed 1"),
        **changes,
    )


def hostile_contents() -> dict[str, list[Any]]:
    """Runs, models and sweeps, whose every text is one of the hostile ones."""
    runs = [
        run_record(
            f"{text}{place}",
            seed=place,
            corpus=text,
            sha=HOSTILE[place % 2],
            path=text,
            config=jaxlm.Config(preset=text).replace(corpus=text or "x"),
            sessions=[
                {"command": text, "versions": {text: text}, "platform": [text], "devices": text}
            ],
        )
        for place, text in enumerate(HOSTILE)
    ]
    models = [model_view(run.name, HOSTILE) for run in runs[:2]]
    trials = [
        Trial(
            place,
            {text: text for text in HOSTILE[:4]} | {"kind": text},
            text,
            1,
            (100.0 + place, NAN),
            (NAN, NAN),
            (100.0,),
        )
        for place, text in enumerate(HOSTILE)
    ]
    sweeps = [
        sweep_record(
            name=text,
            command=text,
            corpus={"name": text, "sha256": text},
            trials=trials,
            model=models[0],
        )
        for text in HOSTILE[:2]
    ]
    return {"runs": runs, "models": models, "sweeps": sweeps}
