"""Export: each file holds the same model, checked by whoever reads it;
what cannot be held is refused.
"""

import json
import re
import shutil
import sys
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from language_models import next_logits
from recipes import KINDS, drawn_params
from safetensors.numpy import load_file

import jaxlm
from jaxlm.base.errors import JaxlmError
from jaxlm.cli import main
from jaxlm.data.vocab import Vocab
from jaxlm.interop.exporting import TARGETS, export_model
from jaxlm.interop.importing import import_model
from jaxlm.runs.state_arrays import flat
from jaxlm.scoring.language_model import LanguageModel

EVERY_PLATFORM = True  # (`one_platform` in conftest.py)
WORDS = ("<eos>", "<unk>", "a", "b", "c", "d", "ë", "\x1b[2J")
TOKENS = [0, 3, 6, 1, 1, 5, 2, 7]
TEXT = "\n b ë <unk> <unk> d a \x1b[2J"
PACKAGES = [("onnx", "onnx"), ("sherpa-onnx", "onnx"), ("stablehlo", "flatbuffers")]
SHAPES = {
    "equal": {"hidden_sizes": (4, 4)},
    "tied": {"hidden_sizes": (3, 4), "tied": True},
    "tied equal": {"hidden_sizes": (4,), "tied": True},
    "widths": {"hidden_sizes": (8, 6)},
}


def model(kind: str = "lstm", shapes: str = "equal", **changes) -> LanguageModel:
    """A model of random parameters, no bias of which is zero."""
    bias = {"forget_bias": 1.5} if kind == "lstm" else {}
    config = jaxlm.preset("small").replace(
        model=kind,
        vocab_size=len(WORDS),
        embedding_size=4,
        init_scale=1.0,
        **bias,
        **SHAPES[shapes],
        **changes,
    )
    return LanguageModel(
        drawn_params(config.model), config, Vocab(WORDS), {"name": "a corpus | <b>{x} ![y](z)"}
    )


def logits(lm: LanguageModel) -> np.ndarray:
    """[N, V] after each token."""
    return np.asarray(next_logits(lm.config.model, lm.params, jnp.array(TOKENS)))


def same(lm: LanguageModel, found: np.ndarray) -> None:
    np.testing.assert_allclose(found, logits(lm), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES)
def test_our_own_reader_reads_it_back(tmp_path, shapes):
    lm = model(shapes=shapes)
    out = tmp_path / "out"
    notes = export_model(lm, "safetensors", out)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    found = import_model(out, tmp_path / "vocab.txt")
    assert found.config.model.tied == lm.config.model.tied and found.vocab == lm.vocab
    np.testing.assert_allclose(found.perplexity(TEXT), lm.perplexity(TEXT), rtol=1e-5)
    assert any("forget bias 1.5" in note for note in notes)
    assert any("rnns.0" in note for note in notes) == ("equal" not in shapes)


def test_a_tied_matrix_has_both_its_names_in_safetensors(tmp_path):
    export_model(model(shapes="tied"), "safetensors", tmp_path / "m")
    held = load_file(tmp_path / "m")
    np.testing.assert_array_equal(held["decoder.weight"], held["encoder.weight"])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_pytorch_loads_it_and_computes_the_same(tmp_path, kind, shapes):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch_file

    lm = model(kind, shapes)
    export_model(lm, "safetensors", tmp_path / "m.safetensors")
    state = load_torch_file(tmp_path / "m.safetensors")
    sizes = (4, *lm.config.model.hidden_sizes)
    cell = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind]
    parts = {
        "encoder": torch.nn.Embedding(len(WORDS), 4),
        "decoder": torch.nn.Linear(sizes[-1], len(WORDS)),
    }
    if "equal" in shapes:
        parts["rnn"] = cell(4, 4, len(sizes) - 1)
    else:
        parts["rnns"] = torch.nn.ModuleList([cell(below, size) for below, size in pairwise(sizes)])
    net = torch.nn.ModuleDict(parts)
    net.load_state_dict(state, strict=True)
    with torch.no_grad():
        x = net["encoder"](torch.tensor(TOKENS)[:, None])
        for layer in net["rnns"] if "rnns" in parts else [net["rnn"]]:
            x, _ = layer(x)
        same(lm, net["decoder"](x)[:, 0].numpy())


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_onnxruntime_computes_the_same_and_hands_the_state_on(tmp_path, kind, shapes):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    lm = model(kind, shapes)
    export_model(lm, "onnx", tmp_path / "m.onnx")
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    sizes = {one.name: one.shape[2] for one in session.get_inputs() if one.name != "tokens"}
    state = {name: np.zeros((1, 2, size), np.float32) for name, size in sizes.items()}
    found = []
    for part in (TOKENS[:3], TOKENS[3:]):
        tokens = np.array(part, np.int64)[:, None].repeat(2, 1)
        names = [one.name for one in session.get_outputs()]
        answers = dict(zip(names, session.run(names, {"tokens": tokens, **state}), strict=True))
        found.append(answers.pop("logits")[:, 1])
        state = {name.removesuffix("_out"): value for name, value in answers.items()}
    same(lm, np.concatenate(found))
    assert json.loads(session.get_modelmeta().custom_metadata_map["vocabulary"]) == list(WORDS)


@pytest.mark.parametrize("kind", KINDS)
def test_stablehlo_computes_the_same_for_any_batch(tmp_path, kind):
    pytest.importorskip("flatbuffers")
    lm = model(kind, "widths")
    export_model(lm, "stablehlo", tmp_path / "m.bin")
    program = export.deserialize(bytearray((tmp_path / "m.bin").read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}

    def step(carry, tokens):
        answer, *carry = program.call(tokens, *carry)
        return carry, answer[0]

    for rows in (1, 3) if kind == "lstm" else (3,):
        tokens = jnp.tile(jnp.array(TOKENS, jnp.int32)[:, None, None], (1, 1, rows))
        zero = [np.zeros((rows, *shape.shape[1:]), np.float32) for shape in program.in_avals[1:]]
        _, found = jax.jit(partial(jax.lax.scan, step))(zero, tokens)
        for row in np.moveaxis(np.asarray(found), 1, 0):
            same(lm, row)


def test_a_hub_s_folder_describes_the_model_and_its_results(tmp_path):
    run = tmp_path / "run"
    config = model().config.replace(vocab_size=10_000, corpus="embedded-tiny", batch_size=20)
    result = jaxlm.train(config.replace(epochs=1, bptt_length=5), run_dir=run, steps=5, quiet=True)
    assert main(["export", str(run), "--to", "hub", "-o", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    lm = jaxlm.load(run)
    assert (config["vocab_size"], config["hidden_size"], config["num_hidden_layers"]) == (
        len(lm.vocab),
        4,
        2,
    )
    assert config["tie_word_embeddings"] is False
    assert Vocab.from_json((tmp_path / "out/vocab.json").read_text()) == lm.vocab
    card = (tmp_path / "out/README.md").read_text()
    assert (
        card.startswith("---\n")
        and f"{result.test_perplexity:.2f}" in card
        and "embedded-tiny" in card
    )
    export_model(model(), "hub", tmp_path / "other")  # words and names of strangers
    assert "a corpus \\| &lt;b>(x) \\!\\[y\\](z)" in (tmp_path / "other/README.md").read_text()
    assert json.loads((tmp_path / "other/vocab.json").read_text())[7] == "\x1b[2J"


def test_a_hub_s_folder_needs_no_checkpoint_that_a_run_has_replaced(tmp_path, monkeypatch):
    config = model().config.replace(
        vocab_size=10_000, corpus="embedded-tiny", batch_size=20, epochs=1, bptt_length=5
    )
    jaxlm.train(config, run_dir=tmp_path / "run", steps=5, quiet=True)

    def loaded(run, which):
        found = jaxlm.load(run, which)
        (step,) = (run / "checkpoints").glob(f"*{which}")
        shutil.move(step, step.with_name("00000009"))
        return found

    monkeypatch.setattr("jaxlm.interop.exporting.model_of", loaded)
    export_model(tmp_path / "run", "hub", tmp_path / "out")
    assert "| embedded-tiny test |" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    "average", [{"average_decay": 0.9}, {"optimizer": "asgd", "nonmonotone": 1}]
)
def test_a_note_says_that_the_average_is_exported(tmp_path, average):
    notes = export_model(model(**average), "safetensors", tmp_path / "m")
    assert any("average" in note for note in notes)


@pytest.mark.parametrize("shapes", ["equal", "tied equal"])
def test_a_recogniser_s_two_interfaces_score_alike(tmp_path, shapes):
    """Of sherpa-onnx: sentences, padded to the longest; and a token at a time."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    lm = model(shapes=shapes)
    out = tmp_path / "out"
    export_model(lm, "sherpa-onnx", out)
    assert (out / "tokens.txt").read_text("utf-8").startswith("<eos> 0\n<unk> 1\na 2\n")
    offline, online = (
        runtime.InferenceSession(str(out / name), providers=["CPUExecutionProvider"])
        for name in ("lm.onnx", "online-lm.onnx")
    )
    sentences = [[2, 3, 6], [1], [5, 5, 2, 7]]
    x = np.zeros((3, 4), np.int64)
    for row, sentence in enumerate(sentences):
        x[row, : len(sentence)] = sentence
    (nll,) = offline.run(None, {"x": x, "x_lens": np.array([3, 1, 4])})
    score = lm.scorer(full=False)
    expected = [score([np.array([0, *one, 0], np.int32)]).nats.sum() for one in sentences]
    np.testing.assert_allclose(nll, expected, rtol=1e-4)
    about = online.get_modelmeta().custom_metadata_map
    layers, width = len(lm.config.model.hidden_sizes), 4
    assert about == {"num_layers": str(layers), "hidden_size": str(width), "sos_id": "0"}
    for sentence, whole in zip(sentences, expected, strict=True):
        h = c = np.zeros((layers, 1, width), np.float32)
        total = 0.0
        for token, following in pairwise([0, *sentence, 0]):
            y, h, c = online.run(None, {"x": np.array([[token]]), "h": h, "c": c})
            total -= y[0, 0, following]
        assert total == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_recogniser_takes_lstm_layers_of_one_width(tmp_path, kind):
    lm = model(kind, shapes="widths")
    with pytest.raises(JaxlmError, match=rf"{kind} layers of 8, 6"):
        export_model(lm, "sherpa-onnx", tmp_path / "out")
    with pytest.raises(JaxlmError, match="lstm in residual blocks"):
        export_model(model(block="residual"), "sherpa-onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


BEYOND_TORCH = [
    (dict(kind="mingru"), "mingru"),
    (dict(kind="mogrifier"), "mogrifier"),
    (dict(kind="attention"), "attention"),
    (dict(kind="gru,attention"), "gru,attention"),
    (dict(skip=True), "skip connections"),
    (dict(scale_embedding=True), "scaled"),
    (dict(experts=2), "2 softmaxes"),
    (dict(running_sum=True), "skip connections"),
    (dict(block="residual"), "lstm in residual blocks"),
    (dict(kind="gru", block="gated"), "gru in gated blocks"),
]


def test_what_onnx_cannot_express_is_refused(tmp_path):
    for refused, why in BEYOND_TORCH:
        with pytest.raises(JaxlmError, match=f"{why}.*safetensors, hub or stablehlo"):
            export_model(model(**refused), "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_pytorch_has_no_module_for_has_jaxlm_s_names(tmp_path):
    for place, (beyond, why) in enumerate(BEYOND_TORCH):
        lm = model(**beyond)
        (note,) = export_model(lm, "safetensors", tmp_path / str(place))
        assert re.search(f"{why}.* jaxlm's names", note)
        arrays = load_file(tmp_path / str(place))
        assert arrays.keys() == flat(lm.params).keys()
        for name, values in flat(lm.params).items():
            np.testing.assert_array_equal(arrays[name], values)


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "arpa"])
def test_nothing_is_written_over_and_nothing_half(tmp_path, monkeypatch, target):
    for needing, module in PACKAGES:
        if needing == target:
            pytest.importorskip(module)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").touch()
    with pytest.raises(JaxlmError, match="something of this name"):
        export_model(model(), target, tmp_path / "there")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.rename" if target == "hub" else "os.fsync", fail)
    with pytest.raises(JaxlmError, match="No space left"):
        export_model(model(), target, tmp_path / "out")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "mine"]


@pytest.mark.parametrize(("target", "module"), PACKAGES)
def test_a_missing_package_names_the_install_line(tmp_path, monkeypatch, target, module):
    monkeypatch.setitem(sys.modules, module, None)
    extra = target.removeprefix("sherpa-")
    with pytest.raises(JaxlmError, match=rf"pip install 'jaxlm\[{extra}\]'"):
        export_model(model(), target, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_knows_every_target(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path), "--to", "pickle", "-o", str(tmp_path / "out")])
    assert "safetensors" in capsys.readouterr().err
    with pytest.raises(JaxlmError, match="stablehlo"):
        export_model(model(), "pickle", tmp_path / "out")
    out = ["-o", str(tmp_path / "out")]
    assert main(["export", str(tmp_path / "no"), "--to", "safetensors", *out]) == 1
    assert "there is no directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path), "--to", "torch", *out])
    assert "--to safetensors" in capsys.readouterr().err
