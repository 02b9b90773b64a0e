"""A hub's folder: read back it is the same model; damaged, it is refused in a sentence. test_hub_peers.py loads it."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_models import WORDS
from recipes import BASE, MODEL_CASES

import jaxlm
from jaxlm.cli import main
from jaxlm.data.vocab import Vocab
from jaxlm.errors import JaxlmError
from jaxlm.interop.export_hub import CELLS
from jaxlm.interop.exporting import export_model
from jaxlm.interop.hub_tokenizer import WHITE_SPACE
from jaxlm.interop.imported import import_model
from jaxlm.runs import state_arrays
from jaxlm.scoring.language_model import LanguageModel

HELD = {name: config for name, config in MODEL_CASES.items() if config.kinds["model"].removeprefix("lamb-") in CELLS}


def language_model(config) -> LanguageModel:
    """A model whose parameters are all different."""
    shapes = state_arrays.shapes_of_state(config).params
    params = jax.tree.map(lambda leaf: jnp.sin(jnp.arange(leaf.size) + leaf.size).reshape(leaf.shape), shapes)
    return LanguageModel(params, config, Vocab(WORDS[: config.model.vocab_size]), {"name": "a text"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "out"
    export_model(language_model(BASE), "hub", out)
    return out


@pytest.mark.parametrize("case", MODEL_CASES)
def test_it_is_imported_as_the_same_model_or_refused(tmp_path, case):
    lm = language_model(MODEL_CASES[case].replace(lowercase=True, average_decay=0.9))
    if case not in HELD:
        with pytest.raises(JaxlmError, match=r"the model has layers of the kind .* --to stablehlo"):
            export_model(lm, "hub", tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
        return
    export_model(lm, "hub", tmp_path / "out")
    import_model(tmp_path / "out", run_dir=tmp_path / "run")
    for found in (import_model(tmp_path / "out"), jaxlm.load(tmp_path / "run")):
        assert found.config == lm.config.replace(corpus="unknown") and found.vocab == lm.vocab
        jax.tree.map(np.testing.assert_array_equal, found.params, lm.params)


def test_the_command_needs_no_vocabulary_for_it_and_one_for_a_file(folder, tmp_path, capsys):
    assert main(["import", str(folder), str(tmp_path / "run")]) == 0
    assert jaxlm.load(tmp_path / "run").predict("the dogs", 1) == language_model(BASE).predict("the dogs", 1)
    export_model(language_model(BASE), "torch", tmp_path / "m.pt")
    capsys.readouterr()
    assert main(["import", str(tmp_path / "m.pt"), str(tmp_path / "other")]) == 1
    assert "has no vocabulary: give the file" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other").exists()


def changed(folder, tmp_path, name, change):
    for file in folder.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(change(data) if file.name == name else data)
    return tmp_path


def described(**changes):
    return lambda data: json.dumps(json.loads(data) | changes).encode()


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("config.json", described(jaxlm_format=2), "format 1, found '2'"),
        ("config.json", described(jaxlm=None), "expected JSON|expected a JSON object"),
        ("config.json", described(jaxlm={}), "expected a config of format"),
        ("config.json", lambda data: data[:100], "config.json is damaged"),
        ("config.json", lambda data: b"[" * 10**6, "config.json is damaged"),
        ("config.json", lambda data: b'{"model_type": "gpt2"}', "was not written by `jaxlm export --to hub`"),
        ("model.safetensors", lambda data: data[:-1], "not a file of safetensors"),
        ("model.safetensors", lambda data: data + bytes(10**6), "expected at most"),
        ("model.safetensors", lambda data: data.replace(b"embedding.weight", b"embedding.height"), "embedding.height"),
        ("model.safetensors", lambda data: data[:-4] + b"\0\0\xc0\x7f", "not finite"),
        ("vocab.txt", lambda data: data[2:].split(b"\n", 1)[1], "10 words, and the model has 11"),
        ("vocab.txt", lambda data: b"\xff" + data, "not UTF-8"),
    ],
)
def test_a_damaged_folder_is_one_sentence_and_makes_nothing(folder, tmp_path, name, change, problem):
    (tmp_path / "hub").mkdir()
    with pytest.raises(JaxlmError, match=problem) as caught:
        import_model(changed(folder, tmp_path / "hub", name, change), run_dir=tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@settings(max_examples=60)
@given(
    name=st.sampled_from(["config.json", "model.safetensors", "vocab.txt"]),
    at=st.floats(0, 0.999),
    byte=st.binary(max_size=3),
)
def test_changed_bytes_are_read_or_refused(folder, tmp_path_factory, name, at, byte):
    place = tmp_path_factory.mktemp("changed")
    try:
        import_model(
            changed(
                folder, place, name, lambda data: data[: int(at * len(data))] + byte + data[int(at * len(data)) + 1 :]
            )
        )
    except JaxlmError as error:
        assert "\n" not in str(error)


def test_no_code_of_the_folder_is_run(folder, tmp_path):
    code = b"raise SystemExit('was run')"
    import_model(changed(folder, tmp_path, "modeling_jaxlm.py", lambda _: code))


def test_the_tokenizer_s_white_space_is_python_s():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert re.sub(f"[^{WHITE_SPACE}]", "", every) == "".join(filter(str.isspace, every))
