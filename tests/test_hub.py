"""A hub's folder: read back it is the same model; damaged, it is refused in a sentence.
test_hub_peers.py loads it.
"""

import hashlib
import json
import re
import shutil
import sys
import time
from functools import cache

import jax
import numpy as np
import pytest
import test_tokens
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from language_models import WORDS
from processes import CONFIG
from recipes import BASE, MODEL_CASES, E

import jaxlm
from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.cli import main
from jaxlm.data.subwords import Subwords
from jaxlm.data.tokens import Characters
from jaxlm.data.vocab import EOS, Vocab
from jaxlm.interop import export_hub
from jaxlm.interop.export_hub import CELLS
from jaxlm.interop.exporting import export_model
from jaxlm.interop.hub_files import WHITE_SPACE, as_json, tokenizer_files
from jaxlm.interop.importing import import_model
from jaxlm.runs import state_arrays
from jaxlm.scoring.language_model import LanguageModel

KINDS = ["words", "characters", *test_tokens.KINDS]
PARTS = [
    *" \t\n\r\x0b\x1c\x85\u3000\u200b<\u2581",
    " <unk> ",
    " <s> ",
    "the",
    "dogs",
    "N",
    "Hund",
    "'s",
    "sat on",
    "é",
    "e\u0301",
    "好",
    "犬",
    "🙂",
]
CASES = MODEL_CASES | {
    "lstm-numbers": BASE.replace(forget_bias=1.5, scale_embedding=True),
    "running-sum": BASE.replace(hidden_sizes=(5, 5, 5), running_sum=True),
    "mixture-epsilon": BASE.replace(experts=3, mixture_epsilon=0.01),
    "gated-positive": BASE.replace(
        model="mingru",
        positive=True,
        block="gated",
        block_norm="layer",
        hidden_sizes=(6, 6),
        inner_size=5,
        convolution=3,
        feed_forward_size=4,
        activation="geglu-tanh",
        projection=True,
    ),
    "griffin": BASE.replace(
        model="hawk,hawk,attention",
        block="residual",
        hidden_sizes=(E, E, E),
        inner_size=6,
        attention_window=3,
        feed_forward_size=4,
    ),
    "lamb-coupled": BASE.replace(model="lamb-mogrifier", input_gate="coupled", keep_update=0.5),
}
HELD = {
    name: config
    for name, config in CASES.items()
    if {kind.removeprefix("lamb-") for kind in config.kinds["model"].split(",")} <= {*CELLS}
}


def language_model(config, vocab: Vocab | None = None) -> LanguageModel:
    """A model whose parameters are all different.

    Those of hawk and attention are smaller: at 1 their sums lose more than 1e-5 in float32.
    """
    vocab = vocab or Vocab(WORDS[: config.model.vocab_size])
    config = config.replace(vocab_size=len(vocab))
    scale = 0.5 if {"hawk", "attention"} & {*config.kinds["model"].split(",")} else 1
    shapes = state_arrays.shapes_of_state(config).params
    params = jax.tree.map(
        lambda leaf: np.float32(scale * np.sin(np.arange(leaf.size) + leaf.size)).reshape(
            leaf.shape
        ),
        shapes,
    )
    params = jax.device_put(params)
    return LanguageModel(params, config, vocab, {"name": "a text"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "out"
    export_model(language_model(BASE), "hub", out)
    return out


@pytest.mark.parametrize("case", CASES)
def test_it_is_imported_as_the_same_model_or_refused(tmp_path, case):
    lm = language_model(CASES[case].replace(lowercase=True, learning_rate=0.9))
    if case not in HELD:
        with pytest.raises(JaxlmError, match=r"the model has layers of the kind .* --to stablehlo"):
            export_model(lm, "hub", tmp_path / "new/out")
        assert list(tmp_path.iterdir()) == []
        return
    export_model(lm, "hub", tmp_path / "out")
    import_model(tmp_path / "out", run_dir=tmp_path / "run")
    for found in (import_model(tmp_path / "out"), jaxlm.load(tmp_path / "run")):
        assert found.config == lm.config.replace(corpus="unknown") and found.vocab == lm.vocab
        jax.tree.map(np.testing.assert_array_equal, found.params, lm.params)


@cache
def vocab(kind: str) -> Vocab:
    if kind == "words":
        return Vocab(WORDS)
    return test_tokens.vocab(kind)


@cache
def tokenizer(kind: str, **options):
    lm = language_model(BASE.replace(**options), vocab(kind))
    return tokenizers.Tokenizer.from_str(tokenizer_files(lm)["tokenizer.json"].decode())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokens_is_imported(tmp_path, kind):
    export_model(language_model(BASE, vocab(kind)), "hub", tmp_path / "out")
    assert import_model(tmp_path / "out").vocab == vocab(kind)
    export_model(language_model(BASE, vocab(kind)), "safetensors", tmp_path / "m")
    found = import_model(tmp_path / "m", tmp_path / "out/vocab.json")
    assert found.vocab == vocab(kind) and found.config.data.tokens == vocab(kind).kind


def test_a_newline_that_other_programs_would_not_cut_is_refused(tmp_path):
    ids = {name: place for place, name in enumerate(["<unk>", "</s>", "\u2581", "a", "b"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(ids, [], unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    tokens = Subwords.read(made.to_str().encode(), "a file")
    with pytest.raises(JaxlmError, match="newline"):
        export_model(language_model(BASE, Vocab(tokens.names, tokens)), "hub", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100)
@given(parts=st.lists(st.sampled_from([*PARTS]), max_size=12))
@example(parts=[test_tokens.TEXT])
def test_the_tokenizer_cuts_a_text_as_jaxlm_does(kind, parts):
    text = "".join(parts)
    try:
        ids = vocab(kind).encode_text(text).tolist()
    except DataError:  # an unknown character
        with pytest.raises(Exception, match="UNK"):
            tokenizer(kind).encode(text)
        return
    assert tokenizer(kind).encode(text).ids == ids
    if kind not in ("words", "json"):
        assert tokenizer(kind).decode(ids, skip_special_tokens=False) == text


def test_the_tokenizer_of_a_model_that_others_made_normalizes_as_it_does():
    for model_type in ("unigram", "bpe"):
        options = dict(
            vocab_size=90, model_type=model_type, split_by_whitespace=model_type != "bpe"
        )
        model = test_tokens.sentencepiece_model(
            **options
        )  # (BPE: with pieces across spaces, which no unit has)
        made = Subwords.read(
            model, "a.model"
        )  # without bytes: letters may be unknown, and a newline is </s>
        for lines in ("eos", "stripped", "unwrap"):
            lm = language_model(BASE.replace(lines=lines), Vocab(made.names, made))
            peer = tokenizers.Tokenizer.from_str(tokenizer_files(lm)["tokenizer.json"].decode())
            for text in ("the cat\n\n sat", "\u3000ﬁ \u2460x caté", test_tokens.TEXT):
                assert peer.encode(text).ids == lm.vocab.encode(lm.tokens(text)).tolist()


def test_special_tokens_are_cut_from_words_as_programs_join_them():
    """minicons and many trainers write bos_token + text and text + eos_token, without a space."""
    ids = vocab("words").encode_text(f"{EOS} the dogs {EOS} a {EOS}").tolist()
    assert tokenizer("words").encode(f"{EOS}the dogs{EOS}a{EOS}").ids == ids


def test_the_tokenizer_lowers_greek_as_python_does():
    text = "Σ ΟΔΟΣ, ΣΟΦΟΣ\nΛΟΓΟΣ. Δ.Σ.Φ. Δ.Σ. ΤΙΣ'ΩΔΗ"  # noqa: RUF001
    found = Vocab((*dict.fromkeys(["<eos>", "<unk>", *text.lower().split()]),))
    files = tokenizer_files(language_model(BASE.replace(lowercase=True), found))
    peer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert peer.encode(text).ids == found.encode_text(text.lower()).tolist()


@settings(max_examples=300)
@given(st.text("ΣΣΣaAʰ'.\u0301\u00ad\U0001f130\u0661 \n", max_size=9))
@example("1Σ 'Σ .Σ AΣ'Σ 'AΣ' ʰΣ")
def test_the_tokenizer_lowers_every_sigma_as_python_does(text):
    peer = tokenizer("bytes", lowercase=True)
    assert peer.encode(text).ids == vocab("bytes").encode_text(text.lower()).tolist()


def test_a_model_that_knows_no_newline_is_refused(tmp_path):
    lm = language_model(BASE, Vocab.build("ab a", kind=Characters()))
    with pytest.raises(JaxlmError, match="begin a text with a newline"):
        export_model(lm, "hub", tmp_path / "out")


def test_the_tokenizer_strips_lines_as_jaxlm_does():
    lm = language_model(BASE.replace(lines="stripped"), Vocab.build("no it\n", kind=Characters()))
    peer = tokenizers.Tokenizer.from_str(tokenizer_files(lm)["tokenizer.json"].decode())
    text = "no it \r\n no \n"
    assert (
        peer.encode(text).ids
        == lm.vocab.encode(lm.tokens(text)).tolist()
        == lm.vocab.encode_text("no it\nno\n").tolist()
    )


def test_blanks_take_linear_time():
    files = tokenizer_files(language_model(BASE.replace(lines="unwrap"), vocab("characters")))
    peer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    start = time.process_time()
    peer.encode("a" + " " * 50_000 + "a\n")  # (without a newline no pattern is tried)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100)
@given(st.text("a \t\n\r", max_size=12))
@example("")
def test_the_tokenizer_unwraps_lines_as_jaxlm_does(kind, text):
    """Behind a letter, behind a blank, and behind the newline that programs write before a text."""
    lm = language_model(BASE.replace(lines="unwrap"), vocab(kind))
    files = tokenizer_files(lm)
    peer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    begin = json.loads(files["tokenizer_config.json"])["bos_token"]
    for before in ("a", " "):
        ids = lm.vocab.encode(lm.tokens(f"{before}{text}")).tolist()
        assert peer.encode(f"{before}{text}").ids == ids
        if before == "a" and kind != "json":
            assert peer.encode(f"{begin}a{text}").ids == [lm.vocab.eos, *ids]


def test_the_command_needs_no_vocabulary_for_it_and_one_for_a_file(folder, tmp_path, capsys):
    assert main(["import", str(folder), str(tmp_path / "run")]) == 0
    assert jaxlm.load(tmp_path / "run").predict("the dogs", 1) == language_model(BASE).predict(
        "the dogs", 1
    )
    same = import_model(folder / "model.safetensors", folder / "vocab.txt")
    assert (
        same.corpus == jaxlm.load(tmp_path / "run").corpus
        and same.vocab == import_model(folder).vocab
    )
    export_model(language_model(BASE), "safetensors", tmp_path / "m")
    capsys.readouterr()
    assert main(["import", str(tmp_path / "m"), str(tmp_path / "other")]) == 1
    assert "has no vocabulary: give the file" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.json"])
def test_a_changed_file_does_not_fit_the_folder_s_checksums(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    lines = (copy / "SHA256SUMS").read_text().splitlines()
    assert {line[66:]: line[:64] for line in lines} == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in copy.iterdir()
        if file.name != "SHA256SUMS"
    }
    (copy / "README.md").write_text("my own words")
    import_model(copy)
    data = bytearray((copy / name).read_bytes())
    data[-2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(JaxlmError, match=f"its {name} is not the one of its SHA256SUMS: get the "):
        import_model(copy)


def changed(folder, tmp_path, name, change):
    for file in folder.iterdir():
        if file.name == "SHA256SUMS":
            continue
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
        (
            "config.json",
            lambda data: b'{"model_type": "gpt2"}',
            "was not written by `jaxlm export --to hub`",
        ),
        ("model.safetensors", lambda data: data[:-1], "not a file of safetensors"),
        ("model.safetensors", lambda data: data + bytes(10**6), "not a file of safetensors"),
        (
            "model.safetensors",
            lambda data: data.replace(b"embedding.weight", b"embedding.height"),
            "embedding.height",
        ),
        ("model.safetensors", lambda data: data[:-4] + b"\0\0\xc0\x7f", "not finite"),
        (
            "vocab.json",
            lambda data: data.replace(b'"runs",', b""),
            "10 words, and the model has 11",
        ),
        ("vocab.json", lambda data: data[:-5], "the vocabulary is not valid JSON"),
        ("vocab.json", lambda data: b"\xff" + data, "not UTF-8"),
    ],
)
def test_a_damaged_folder_is_one_sentence_and_makes_nothing(
    folder, tmp_path, name, change, problem
):
    (tmp_path / "hub").mkdir()
    with pytest.raises(JaxlmError, match=problem) as caught:
        import_model(changed(folder, tmp_path / "hub", name, change), run_dir=tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@settings(max_examples=60)
@given(
    name=st.sampled_from(["config.json", "model.safetensors", "vocab.json"]),
    at=st.floats(0, 0.999),
    byte=st.binary(max_size=3),
)
def test_changed_bytes_are_read_or_refused(folder, tmp_path_factory, name, at, byte):
    place = tmp_path_factory.mktemp("changed")
    try:
        import_model(
            changed(
                folder,
                place,
                name,
                lambda data: data[: int(at * len(data))] + byte + data[int(at * len(data)) + 1 :],
            )
        )
    except JaxlmError as error:
        assert "\n" not in str(error)


def test_no_code_of_the_folder_is_run(folder, tmp_path):
    code = b"raise SystemExit('was run')"
    import_model(changed(folder, tmp_path, "modeling_jaxlm.py", lambda _: code))


def test_checkpoints_kept_by_words_are_folders_in_it(tmp_path, monkeypatch):
    run = tmp_path / "run"
    out = tmp_path / "out"
    jaxlm.train(CONFIG, run_dir=run, steps=50, quiet=True)
    assert main(["export", str(run), "--to", "hub", "-o", str(out)]) == 0
    for folder, step in ((out, "last"), (out / "chck_15k", "15"), (out / "chck_45k", "45")):
        found = import_model(folder).params
        wanted = jaxlm.load(run, step).params
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    export_model(run, "hub", tmp_path / "early", "15")
    assert "| embedded-tiny+max_vocab=100 test |" in (out / "README.md").read_text()
    assert "None were measured for these parameters" in (tmp_path / "early/README.md").read_text()
    monkeypatch.setattr(export_hub, "_revision", lambda words: "/" if words == 45_000 else "chck")
    with pytest.raises(ValueError, match="name of an entry"):
        export_model(run, "hub", tmp_path / "half")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["early", "out", "run"]
    monkeypatch.undo()
    assert [export_hub._revision(words) for words in (10**6, 10**9, 5000, 1234)] == [
        "chck_1M",
        "chck_1000M",
        "chck_5k",
        "chck_1234",
    ]


def test_the_tokenizer_s_white_space_is_python_s():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert re.sub(f"[^{WHITE_SPACE}]", "", every) == "".join(filter(str.isspace, every))


def test_a_path_that_is_not_utf_8_is_escaped():
    """As of a file whose name is Latin-1; other letters stay as they are."""
    named = {"corpus": "caf\udce9.txt", "by": "\u00e9"}
    assert json.loads(as_json(named).decode()) == named and "\u00e9" in as_json(named).decode()
