"""Arguments: a flag for every field of every kind, help that follows the kinds chosen,
and one sentence for the rest.

What is heavy (training, loading, preparing) is replaced; parsing, configs, files and messages are
the real ones.
"""

import io
import os
import runpy
import shlex
import signal
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from language_models import small_lm
from terminals import ROOT, run

import jaxlm.distributed.hosts
import jaxlm.runs.loading
import jaxlm.runs.reproduction
import jaxlm.runs.trainer
import jaxlm.sweeps
from jaxlm.base.errors import Diverged, JaxlmError
from jaxlm.base.fields import Spec, specs
from jaxlm.base.files import explained
from jaxlm.base.terminal import say
from jaxlm.cli.arguments import argument, command, whole
from jaxlm.cli.ending import exit_code
from jaxlm.cli.verbs import VERBS, Verb
from jaxlm.config.config import KINDS, PRESETS, SECTIONS, Config, all_kinds, preset
from jaxlm.config.protocols import protocol_of
from jaxlm.scoring.evaluation import Evaluation
from jaxlm.scoring.generation import Text

NASTY = [
    "",
    "-",
    "--",
    "---",
    "²",
    "٣",
    "nan",
    "inf",
    "-inf",
    "none",
    "1e999",
    "-1",
    "0",
    "1",
    "-0.0",
    "9" * 5000,
    "1" * 400,
    "0x10",
    "1_0",
    " 1",
    "1,2",
    ",",
    "1,,2",
    "256x128",
    "true",
    "\x1b]0;x\x07",
    "\udcff",
    "a b",
    "\n",
    "%s",
    "%",
    "{}",
    "/",
    "/dev/null",
    "/dev/zero",
    "/no/such",
    ".",
    "..",
    "small",
    "lstm",
    "gru",
    "muon",
    "cosine",
    "-h1",
    "--=",
    "=",
    "learning_rate=1",
    "learning_rate=",
    "hidden_sizes=²",
    "=1",
    "last",
    "best",
    "x" * 300,
    "host:1",
    "log:0.1:10",
    "range:1:3:1",
]


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """What is heavy, replaced: the (arguments, keywords) of each call are kept, in order."""
    kept = []

    def stub(result):
        def call(*args, **keywords):
            kept.append((args, keywords))
            return result

        return call

    evaluation = Evaluation(2.0, 1.0, 3, "x", unknown=0.1)
    model = small_lm()
    methods = {
        name: getattr(model, name)
        for name in dir(model)
        if name[0] != "_" and callable(getattr(model, name))
    }
    heavy = {
        "perplexity": stub(1e300),
        "predict": stub([("a", 0.5)]),
        "neighbors": stub([("a", 0.5)]),
        "evaluate": stub(evaluation),
        "tune": stub(
            SimpleNamespace(protocol=protocol_of("cache"), valid=2.0, tried=[1], test=evaluation)
        ),
        "read": stub(("x", np.arange(9, dtype=np.int32))),
        "adaptive": stub(model.scorer()),
        "stream": stub([("a", -0.5)]),
        "generate": stub([Text(["a"], np.zeros(1))]),
    }
    lm = SimpleNamespace(**{**methods, **heavy}, vocab=model.vocab)
    corpus = SimpleNamespace(notes=(), name="x", description="y", vocab=range(9))
    sweep = SimpleNamespace(stopped_by=None, best=1, damaged=[])
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path_factory.mktemp("here"))
        monkeypatch.setattr(
            jaxlm.runs.trainer, "train", stub(SimpleNamespace(stopped_by=None, run_dir=None))
        )
        monkeypatch.setattr(jaxlm.runs.loading, "load", lambda *_: lm)
        monkeypatch.setattr(jaxlm.distributed.hosts, "join_processes", lambda *_: False)
        monkeypatch.setattr(
            jaxlm.runs.reproduction,
            "reproduce",
            stub(SimpleNamespace(surroundings=["s"], stopped_by=None, results=[], run_dir="x")),
        )
        monkeypatch.setattr("jaxlm.data.corpora.prepare", stub(corpus))
        monkeypatch.setattr(
            "jaxlm.data.corpora.load_corpus", stub(SimpleNamespace(sha256="x", name="x", notes=()))
        )
        monkeypatch.setattr("jaxlm.cli.converting.make_ngram", stub(lm))
        monkeypatch.setattr("jaxlm.sweeps.supervisor.sweep", stub(sweep))
        monkeypatch.setattr("jaxlm.sweeps.supervisor.saved_options", lambda *_: (Config(), {}, {}))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a b")))
        os.mkdir("empty")
        os.mkfifo("fifo")
        with open("sparse", "wb") as file:
            file.truncate(1 << 40)
        for name, text in (
            ("deep.json", '{"learning_rate":' + "[" * 100_000),
            ("time.toml", "learning_rate = 1979-05-27"),
            ("big.json", '{"format":2,"train":{"seed":' + "9" * 5000 + "}}"),
            ("bytes", "\udcff"),
            ("good.json", preset("test").to_json()),
        ):
            with open(name, "w", errors="surrogateescape") as file:
                file.write(text)
        yield kept


FILES = ["empty", "fifo", "sparse", "deep.json", "time.toml", "big.json", "bytes", "good.json"]


def flags_of(name):
    """(flags, positional arguments) of a verb: option -> whether it takes a value."""
    actions = [action for action in VERBS[name].parser()._actions if action.dest != "help"]
    return (
        {flag: action.nargs != 0 for action in actions for flag in action.option_strings},
        [action for action in actions if not action.option_strings],
    )


VALUES = st.one_of(
    st.sampled_from(NASTY),
    st.sampled_from(FILES),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0"), max_size=8),
)


@st.composite
def command_lines(draw, name):
    flags, positional = flags_of(name)
    line = [
        draw(st.one_of(st.sampled_from(["empty", "fifo", "good.json"]), VALUES)) for _ in positional
    ]
    for flag in draw(st.lists(st.sampled_from(sorted(flags)), max_size=5)) if flags else ():
        value = draw(VALUES)
        line += (
            [flag]
            if not flags[flag]
            else [f"{flag}={value}"]
            if draw(st.booleans())
            else [flag, value]
        )
    if draw(st.integers(0, 9)) == 0:
        line.insert(draw(st.integers(0, len(line))), draw(VALUES))
    return [token for token in line if token not in ("-h", "--help", "--help-all")]


@pytest.mark.parametrize("name", VERBS)
def test_any_command_line_is_done_or_refused_in_one_sentence(name, calls):
    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(line=command_lines(name))
    @example(line=["empty", "empty"])
    def check(line):
        code, out, err = run([name, *line])
        assert code in (0, 1, 2, 3)
        notes = 2 if code == 0 else 1  # what was counted, and a warning
        assert err.count("\n") == len(err.splitlines()) <= notes and "Traceback" not in err, err
        assert err.startswith("error: ") == (code != 0) or (name, code, err) == ("info", 1, "")
        assert len(err) < 2500 and "\x1b" not in out + err

    check()


def test_every_field_has_a_flag_for_any_of_its_values(calls):
    """The values come from the specs, so that a new field or kind is tested by being declared.

    A field that several kinds inherit is the same for the parser, and is tested with the first.
    """
    tested = set()
    for slot, kind_name, kind in all_kinds():
        chosen = {slot: kind_name} if kind_name else {}
        for item in fields(kind):
            spec = specs(kind)[item.name]
            if (item.name, repr(spec)) in tested:
                continue
            tested.add((item.name, repr(spec)))
            start = Config().replace(**chosen)
            for value in {*_some_values(spec), *((None,) if spec.optional else ())}:
                try:
                    expected = start.replace(**{item.name: value})
                except JaxlmError:
                    continue  # two fields contradict each other
                line = [
                    *(f"--{at}={kind}" for at, kind in chosen.items()),
                    *_flag(item.name, spec, value),
                ]
                code, _, err = run(["train", "--config", "default.json", *line])
                assert code == 0, err
                assert calls[-1][0][0] == expected


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_every_kind_has_a_flag_for_each_of_its_fields(name, calls):
    """All of a kind's fields in one command, at the values that they have."""
    space = ["--set", "vocab_size=5,6"] if name == "sweep" else []
    for slot, kind_name, kind in all_kinds():
        chosen = {slot: kind_name} if kind_name else {}
        start = Config().replace(**chosen)
        section = getattr(start, slot)
        assert isinstance(section, kind)
        line = [f"--{at}={kind}" for at, kind in chosen.items()]
        for item in fields(kind):
            if item.name != "vocab_size" or not space:
                spec = specs(kind)[item.name]
                line += _flag(item.name, spec, getattr(section, item.name))
        code, _, err = run([name, *space, "--config", "default.json", *line])
        assert code == 0, err
        assert calls[-1][0][0] == start


@pytest.fixture(autouse=True)
def default_config(calls):
    with open("default.json", "w") as file:
        file.write(Config().to_json())


def _some_values(spec: Spec) -> list:
    if spec.choices:
        return list(spec.choices)
    if spec.type is float:
        inside = [
            low
            for low in (spec.low, 0.125, 0.5, spec.high, -1.5e-3)
            if spec.above < low < spec.below
        ]
        return [
            value
            for value in inside
            if spec.low <= value <= spec.high and abs(value) < float("inf")
        ]
    return {
        int: [max(spec.low, 3), spec.low, spec.high],
        tuple: [(7,), (256, 128)],
        bool: [True, False],
        str: ["x/y", "a b"],
    }[spec.type]


def _flag(name: str, spec: Spec, value) -> list[str]:
    flag = name.replace("_", "-")
    if spec.type is bool:
        return [f"--{'' if value else 'no-'}{flag}"]
    text = (
        "none"
        if value is None
        else ",".join(map(str, value))
        if spec.type is tuple
        else (str(int(value)) if spec.type is int else str(value))
    )
    return [f"--{flag}={text}"]


@pytest.mark.parametrize(
    ("line", "epochs", "space"),
    [
        ([], 5, {"learning_rate": "0.25,0.5,1,2", "clip_norm": "1,5"}),
        (["--clip-norm", "1", "--epochs=2"], 2, {"learning_rate": "0.25,0.5,1,2"}),
        (["--set", "seed=1,2"], 5, {"seed": "1,2"}),
        (
            ["--config", "own.json"],
            preset("test").train.epochs,
            {"learning_rate": "0.25,0.5,1,2", "clip_norm": "1,5"},
        ),
        (["--run-dir", "x", "--resume"], Config().train.epochs, {}),
        (["--schedule", "cosine"], 5, {"learning_rate": "0.25,0.5,1,2", "clip_norm": "1,5"}),
        (["--set", "schedule=cosine,linear"], 5, {"schedule": "cosine,linear"}),
        (["--preset", "fast-78"], 5, {"learning_rate": "0.25,0.5,1,2", "clip_norm": "1,5"}),
    ],
)
def test_a_script_sweeps_its_own_space_unless_flags_replace_it(calls, line, epochs, space):
    Path("own.json").write_text(
        preset("test").to_json()
    )  # (drawn arguments may have written over the shared files)
    own = runpy.run_path(str(ROOT / "experiments/ptb_sweep.py"))["arguments"]
    assert run(["sweep", *own(line)])[0] == 0
    assert (calls[-1][0][0].train.epochs, calls[-1][0][1]) == (epochs, space)


def test_a_rate_given_for_a_sweep_of_optimizers_is_each_one_s(calls):
    assert (
        run(
            ["sweep", "--set", "optimizer=sgd,adamw", "--clip-norm", "0.5", "--keep-output", "0.7"]
        )[0]
        == 0
    )
    config, space = calls[-1][0][:2]
    assert (
        space == {"clip_norm": [0.5], "optimizer": "sgd,adamw"} and config.model.keep_output == 0.7
    )
    assert run(["sweep", "--set", "model=lstm,gru", "--clip-norm", "0.5"])[0] == 0
    assert calls[-1][0][1] == {"model": "lstm,gru"}


def test_what_a_new_kind_takes_over_is_printed(calls):
    code, said, _ = run(["train", "--preset", "awd-lstm", "--optimizer", "adamw"])
    assert (
        code == 0
        and "the optimizer adamw takes over from asgd: cost mean, activation_penalty 2" in said
    )
    assert "in place of learning_rate 30, clip_norm 0.25" in said


def test_a_run_of_any_config_has_its_usual_place_in_runs(calls):
    Path("strange.json").write_text(preset("test").replace(preset="../../a\0 b").to_json())
    assert run(["train", "--config", "strange.json"])[0] == 0
    folder = calls[-1][1]["run_dir"]
    assert folder.parent == Path("runs") and folder.name.startswith("..-..-a--b-")


def test_a_verb_is_one_function_and_a_row(monkeypatch):
    @command(
        argument("number", type=whole(1), metavar="N", help="a number"),
        argument("--by", type=whole(1), default=2, metavar="N", help="times how many"),
    )
    def times_it(args):
        say(args.number * args.by)

    monkeypatch.setitem(sys.modules, "jaxlm.cli.times", SimpleNamespace(times_it=times_it))
    monkeypatch.setitem(VERBS, "times-it", Verb("times-it", "times:times_it", "twice a number"))
    assert run(["times-it", "4", "--by", "3"]) == (0, "12\n", "")
    assert run(["times-it", "0"])[0] == 2
    assert "times-it" in run(["--help"])[1]


def test_negative_numbers_with_an_exponent_are_values(calls):
    assert run(["train", "--forget-bias", "-1e-3", "--schedule-offset", "-2.5"])[0] == 0
    assert (calls[-1][0][0].model.forget_bias, calls[-1][0][0].schedule.schedule_offset) == (
        -0.001,
        -2.5,
    )


def test_a_text_may_come_after_flags_and_may_look_like_one():
    parse = VERBS["perplexity"].parser().parse_args
    assert parse(["R", "--checkpoint", "best", "a b"]).text == parse(["R", "a b"]).text == "a b"
    assert parse(["R", "--", "--tune"]).text == "--tune"
    assert VERBS["surprisal"].parser().parse_args(["R", "--eos", "a", "b"]).texts == [
        Path("a"),
        Path("b"),
    ]


def test_a_flag_that_is_nearly_right_is_suggested():
    code, _, err = run(["train", "--lerning-rate", "1"])
    assert code == 2 and "did you mean --learning-rate?" in err and "jaxlm train --help" in err
    assert (
        "did you mean --lower-bound?"
        in run(["train", "--model", "hgrn2", "--lower-bond", "0.1"])[2]
    )
    assert "did you mean --workers?" in run(["sweep", "--worker", "2"])[2]
    assert "'zaremba-small'" in run(["train", "--preset", "zaremba-smal"])[2]
    assert all(name in run(["train", "--preset", "q"])[2] for name in PRESETS)


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (JaxlmError("a\nb"), 1, "a b"),
        (Diverged("at 3"), 3, "at 3"),
        (MemoryError(), 1, "not enough memory"),
        (RecursionError("maximum"), 1, "nested too deeply"),
        (OverflowError("int too large"), 1, "too large"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 1, "UTF-8"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(24, "Too many open files", "x"), 1, "ulimit -n"),
        (BrokenPipeError(), 1, ""),
        (RuntimeError("can't start new thread"), 1, "ulimit -u"),
        (ImportError("libx.so"), 1, "pip install --force-reinstall jaxlm"),
        (
            jaxlm.runs.trainer.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 5 GB\n more"),
            1,
            "RESOURCE_EXHAUSTED: 5 GB",
        ),
    ],
)
def test_whatever_is_raised_ends_in_one_sentence(raised, code, message):
    def act(_):
        raise raised

    found, _, err = run([], lambda line: exit_code(lambda: act(line)))
    assert found == code and message in err and err.count("\n") == bool(message)


def test_threads_end_without_a_traceback():
    def act():
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        raise JaxlmError("the sentence")

    before = threading.excepthook
    assert run([], lambda _: exit_code(act)) == (1, "", "error: the sentence\n")
    assert threading.excepthook is before


def test_ctrl_c_in_a_destructor_is_not_lost():
    class Dropped:
        def __del__(self):
            raise KeyboardInterrupt

    def act():
        Dropped()
        time.sleep(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    try:
        assert run([], lambda _: exit_code(act)) == (130, "", "error: interrupted\n")
        assert time.monotonic() < started + 50
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_warning_is_one_line():
    def act():
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("\x1b of\ntwo lines", RuntimeWarning, stacklevel=1)

    assert run([], lambda _: exit_code(act)) == (0, "", "warning: \\x1b of two lines\n")


def test_the_fixed_sections_have_no_kind():
    assert {*SECTIONS} - {*KINDS} == {"train", "data"}
    with patch.object(sys, "argv", ["jaxlm", *shlex.split("train --train x")]):
        assert run(None)[0] == 2


def test_ctrl_c_while_trees_are_compared_is_not_taken_for_damage():
    class Interrupted:
        def __eq__(self, other):
            raise KeyboardInterrupt  # as Python does in whatever runs when the signal comes

    @jax.tree_util.register_dataclass
    @dataclass
    class Node:
        what: Interrupted = field(metadata={"static": True})

    def act():
        one, other = (jax.tree.structure(Node(Interrupted())) for _ in range(2))
        with explained(JaxlmError, "the checkpoint cannot be read"):
            assert one == other

    assert run([], lambda _: exit_code(act)) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("asked", ["", "1"])
def test_a_traceback_is_shown_where_it_is_asked(monkeypatch, asked):
    monkeypatch.setenv("JAXLM_TRACEBACK", asked)

    def act():
        raise JaxlmError("the sentence")

    code, _, err = run([], lambda _: exit_code(act))
    assert (
        code == 1 and err.endswith("error: the sentence\n") and ("Traceback" in err) == bool(asked)
    )
