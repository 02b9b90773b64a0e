"""jaxlm/lm_eval.py: the harness's numbers are jaxlm's own; a task file of ours runs offline."""

import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
import jaxlm
from jaxlm.lm_eval import JaxLM

TASK = """
task: jaxlm_pairs
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_choice: "{{{{[good, bad]}}}}"
doc_to_target: 0
metric_list:
  - metric: acc
"""

ROLLING = """
task: jaxlm_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""


def request(*arguments):
    return types.SimpleNamespace(args=arguments)


def test_log_probabilities_are_the_model_s(tiny_run):
    lm = jaxlm.load(tiny_run[0].run_dir)
    harness = JaxLM(str(tiny_run[0].run_dir))
    a, b, c, d = lm.vocab.words[3:7]
    (together, greedy), (likeliest, is_greedy) = harness.loglikelihood(
        [
            request(f"{a} {b}", f" {c} {d}"),
            request(f"{a} {b}", f" {lm.predict(f'{a} {b}', 1)[0][0]}"),
        ]
    )
    first = dict(lm.predict(f"{a} {b}", 10**6))[c]
    second = dict(lm.predict(f"{a} {b} {c}", 10**6))[d]
    assert together == pytest.approx(math.log(first * second), abs=1e-4) and isinstance(
        greedy, bool
    )
    assert is_greedy and likeliest == pytest.approx(
        math.log(lm.predict(f"{a} {b}", 1)[0][1]), abs=1e-4
    )
    (rolling,) = harness.loglikelihood_rolling([request(f"{a} {b} {c}")])
    assert rolling == pytest.approx(
        -float(lm.surprisal([f"{a} {b} {c}"], unit="nats").surprisal.sum()), abs=1e-3
    )


def test_the_harness_still_knows_its_own_models():
    from lm_eval.api.registry import get_model  # pyright: ignore[reportMissingImports]

    assert get_model("jaxlm") is JaxLM
    assert get_model("hf").__name__ == "HFLM"


def test_generation_stops_where_it_is_told(tiny_run):
    harness = JaxLM(str(tiny_run[0].run_dir))
    word = jaxlm.load(tiny_run[0].run_dir).vocab.words[3]
    (long,) = harness.generate_until([request(word, {"until": [], "max_gen_toks": 12})])
    assert len(long.replace("\n", " <eos> ").split()) == 12
    (short,) = harness.generate_until([request(word, {"until": ["\n"], "max_gen_toks": 400})])
    assert "\n" not in short and long.startswith(short[:10])
    first = next(word for word in long.split() if len(word) > 1)
    stops = [first[1:], first[:1]]  # both in one word: the earlier one counts
    (cut,) = harness.generate_until([request(word, {"until": stops, "max_gen_toks": 12})])
    assert cut == long[: long.find(first[:1])]


def test_options_are_read_as_the_harness_s_own_models_read_them(tiny_run):
    harness = JaxLM(str(tiny_run[0].run_dir), tokenizer="space")
    asked = (
        {"max_new_tokens": 5},
        {"max_tokens": 5, "temperature": 0.8},
        {"max_gen_toks": 5, "do_sample": False, "top_k": 3},  # which greedy text does without
    )
    greedy, drawn, cold = harness.generate_until(
        [
            request("", {"until": [], **options, "seed": 3})
            for options in (*asked[:2], asked[2] | {"temperature": 0.8})
        ]
    )
    assert [len(text.replace("\n", " <eos> ").split()) for text in (greedy, drawn)] == [5, 5]
    assert greedy == cold != drawn


def test_a_continuation_is_greedy_where_each_of_its_words_is_likeliest(tiny_run):
    lm = jaxlm.load(tiny_run[0].run_dir)
    harness = JaxLM(str(tiny_run[0].run_dir))
    word = lm.vocab.words[3]
    best = lm.predict(word, 1)[0][0]
    second, third = (name for name, _ in lm.predict(f"{word} {best}", 2))
    answers = harness.loglikelihood(
        [request(word, f" {best} {second}"), request(word, f" {best} {third}")]
    )
    assert [greedy for _, greedy in answers] == [True, False]


def test_a_text_without_context_follows_the_end_of_a_sentence(tiny_run):
    harness = JaxLM(str(tiny_run[0].run_dir))
    text = " ".join(jaxlm.load(tiny_run[0].run_dir).vocab.words[3:6])
    ((alone, _),) = harness.loglikelihood([request("", text)])
    assert alone == pytest.approx(harness.loglikelihood_rolling([request(text)])[0], rel=1e-5)


def test_what_the_options_of_a_task_mean(tiny_run):
    harness = JaxLM(str(tiny_run[0].run_dir))
    word = jaxlm.load(tiny_run[0].run_dir).vocab.words[3]

    def texts(*options):
        requests = [request(word, {"until": [], "max_gen_toks": 12, **one}) for one in options]
        return harness.generate_until(requests)

    sampled = {"temperature": 1.0}
    first, again, seeded, same = texts(
        sampled, sampled, sampled | {"seed": 5}, sampled | {"seed": 5}
    )
    assert first != again and seeded == same
    greedy, one_word, little_mass, asked = texts(
        {}, sampled | {"top_k": 1}, sampled | {"top_p": 1e-9}, {"do_sample": True}
    )
    assert greedy == one_word == little_mass != asked
    # Whichever stop comes first ends the text, and the first name of a length counts.
    words = greedy.split()
    (short,) = texts({"until": [words[6], words[3]]})
    assert short == greedy[: min(greedy.find(words[6]), greedy.find(words[3]))]
    (few,) = texts({"max_gen_toks": 3, "max_tokens": 8})
    assert len(few.replace("\n", " <eos> ").split()) == 3
    assert texts({"max_gen_toks": 0}) == [""]
    (usual,) = harness.generate_until([request(word, {"until": []})])
    assert len(usual.replace("\n", " <eos> ").split()) == 256


def test_a_choice_of_marks_alone_is_not_certain(tiny_run):
    lm = jaxlm.load(tiny_run[0].run_dir)
    harness = JaxLM(str(tiny_run[0].run_dir), tokenizer="ptb")
    assert lm.tokens("!", "ptb") == [] and harness.tok_encode(" !") == [lm.vocab.unknown_id]
    ((log_p, _),) = harness.loglikelihood([request("the", " !")])
    assert log_p < -0.1


@pytest.mark.slow
def test_a_task_file_runs_offline(tiny_run, tmp_path):
    words = jaxlm.load(tiny_run[0].run_dir).vocab.words
    rows = [{"good": " ".join(words[3:6]), "bad": " ".join(words[-3:])} for _ in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pairs.yaml").write_text(TASK.format(data=tmp_path / "pairs.jsonl"))
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": str(Path(jaxlm.__path__[0]).parent),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "jaxlm.lm_eval",
            "--model",
            "jaxlm",
            "--model_args",
            f"run={tiny_run[0].run_dir}",
            "--tasks",
            "jaxlm_pairs",
            "--include_path",
            str(tmp_path),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "jaxlm_pairs" in done.stdout and "acc" in done.stdout


@pytest.mark.slow
def test_the_harness_s_numbers_of_a_text_are_those_that_compare(tiny_run, tmp_path, monkeypatch):
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    lm = jaxlm.load(tiny_run[0].run_dir)
    text = " ".join(lm.vocab.words[3:9]) + "\n" + " ".join(lm.vocab.words[20:25])
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (tmp_path / "text.yaml").write_text(ROLLING.format(data=tmp_path / "text.jsonl"))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    model = JaxLM(str(tiny_run[0].run_dir))
    found = simple_evaluate(model, tasks=["jaxlm_text"], task_manager=manager, bootstrap_iters=0)[
        "results"
    ]["jaxlm_text"]
    lines = lm.surprisal(text.split("\n"), context="stream", unit="nats", eos=True)
    nats = lines.surprisal[:-1].sum()
    size = len(text.encode())  # without the end of the last line
    assert found["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["byte_perplexity,none"] == pytest.approx(math.exp(nats / size), rel=1e-5)
    assert found["word_perplexity,none"] == pytest.approx(
        math.exp(nats / len(text.split())), rel=1e-5
    )


def test_a_stop_may_begin_with_the_end_of_a_line(tiny_run):
    harness = JaxLM(str(tiny_run[0].run_dir))
    word = jaxlm.load(tiny_run[0].run_dir).vocab.words[3]
    (long,) = harness.generate_until(
        [request(word, {"until": [], "max_gen_toks": 100, "temperature": 1.0, "seed": 1})]
    )
    stop = "\n" + long.split("\n")[1].split()[0]
    options = {"until": [stop], "max_gen_toks": 100, "temperature": 1.0, "seed": 1}
    (short,) = harness.generate_until([request(word, options)])
    assert stop in long and long.startswith(short) and stop not in short
