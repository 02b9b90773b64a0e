"""TensorFlow 1's checkpoints: recorded ones, and ones that are put together here.

What needs TensorFlow runs where it is installed, as .ci/nightly has it.
"""

import shutil
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interop_files import golden, log_probabilities, recorded

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.interop.importing import model_vocabulary, read_model
from jaxlm.interop.tensorflow import checkpoint_prefix, tensorflow_model

CASES = recorded("tf1_ckpt", "checkpoints")
TOKENS = [0, 3, 5, 1, 1, 2]


@pytest.fixture(scope="session")
def tensorflow():
    """Skips where there is no TensorFlow."""
    pytest.importorskip("tensorflow")


def masked(checksum: int) -> int:
    """A checksum as TensorFlow stores it."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def slow_crc(data: bytes) -> int:
    """CRC-32C bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out = out + bytes([value & 127 | 128])
        value = value >> 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def table(entries: dict[bytes, bytes], a_block: int = 3, kind: bytes = b"\0") -> bytes:
    """A sorted string table with `a_block` entries a block."""
    out = b""
    handles = []

    def write(block: bytes) -> bytes:
        nonlocal out
        handle = varint(len(out)) + varint(len(block))
        out += block + kind + struct.pack("<I", masked(slow_crc(block + kind)))
        return handle

    def block(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
        body = b""
        before = b""
        for key, value in pairs:
            shared = next(
                (i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b),
                min(len(key), len(before)),
            )
            body += (
                varint(shared)
                + varint(len(key) - shared)
                + varint(len(value))
                + key[shared:]
                + value
            )
            before = key
        return body + struct.pack("<II", 0, 1)

    keys = sorted(entries)
    for start in range(0, len(keys), a_block):
        group = keys[start : start + a_block]
        handles.append((group[-1], write(block((key, entries[key]) for key in group))))
    meta = write(block([]))
    index = write(block(handles))
    return out + (meta + index).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


KINDS = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "int64": 9,
    "float16": 19,
    "uint16": 14,
}  # uint16 holds bfloat16


def write_checkpoint(
    prefix: Path,
    variables: dict[str, np.ndarray],
    kind: bytes = b"\0",
    more: dict[bytes, bytes] | None = None,
) -> Path:
    """A checkpoint as TensorFlow's BundleWriter makes it."""
    data = b""
    entries = {b"": number(1, 1)}
    for name, array in variables.items():
        raw = array.tobytes()
        shape = b"".join(message(2, number(1, size)) for size in array.shape)
        entries[name.encode()] = (
            number(1, KINDS[array.dtype.name])
            + message(2, shape)
            + number(4, len(data))
            + number(5, len(raw))
            + varint(6 << 3 | 5)
            + struct.pack("<I", masked(slow_crc(raw)))
        )
        data += raw
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    Path(f"{prefix}.index").write_bytes(table(entries | (more or {}), kind=kind))
    return prefix


def variables(
    scope: str = "Model/",
    cell: str = "RNN/multi_rnn_cell/cell_{}/basic_lstm_cell/{}",
    vocab_size: int = 6,
    width: int = 3,
    sizes: tuple[int, ...] = (2, 4),
    names: tuple[str, str] = ("kernel", "bias"),
) -> dict:
    random = np.random.default_rng(1)
    arrays = {}

    def draw(*shape: int) -> np.ndarray:
        return random.uniform(-1, 1, shape).astype(np.float32)

    arrays[f"{scope}embedding"] = draw(vocab_size, width)
    for place, size in enumerate(sizes):
        arrays[scope + cell.format(place, names[0])] = draw(width + size, 4 * size)
        arrays[scope + cell.format(place, names[1])] = draw(4 * size)
        width = size
    return arrays | {
        f"{scope}softmax_w": draw(width, vocab_size),
        f"{scope}softmax_b": draw(vocab_size),
    }


def check(model, arrays: dict[str, np.ndarray]) -> None:
    """The tree is the variables, in their order."""
    layers = [layer[part] for layer in model.params["layers"] for part in ("kernel", "bias")]
    leaves = [
        model.params["embedding"],
        *layers,
        *(model.params["softmax"][part] for part in ("kernel", "bias")),
    ]
    for leaf, array in zip(leaves, arrays.values(), strict=True):
        np.testing.assert_array_equal(leaf, array)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "form", ["{0}", "{0}.index", "{0}.data-00000-of-00001", "{1}", "{1}/checkpoint"]
)
def test_checkpoints_of_tensorflow_answer_as_it_did(tensorflow, name, form):
    case = CASES[name]
    folder = golden("tf1_ckpt")
    model = read_model(folder / form.format(case["checkpoint"], name))
    vocab = model_vocabulary(folder / "vocab.txt", model.config.vocab_size)
    assert model.config.hidden_sizes == (case["hidden"],) * case["layers"] and not model.config.tied
    assert vocab.decode(case["tokens"]) == case["words"]
    answers = log_probabilities(model, case["tokens"])
    np.testing.assert_allclose(answers, case["logprob_float64_transcribed"], atol=1e-8)
    np.testing.assert_allclose(answers, case["logprob_tensorflow_float32"], atol=1e-5)
    assert any("global_step" in note for note in model.notes)


@pytest.mark.parametrize(
    ("scope", "cell", "names"),
    [
        ("Model/", "RNN/multi_rnn_cell/cell_{}/basic_lstm_cell/{}", ("kernel", "bias")),
        ("", "multi_rnn_cell/cell_{}/lstm_cell/{}", ("kernel", "bias")),
        ("a/b/c/", "rnn/multi_rnn_cell/cell_{}/basic_lstm_cell/{}", ("weights", "biases")),
        ("model/", "RNN/MultiRNNCell/Cell{}/BasicLSTMCell/Linear/{}", ("Matrix", "Bias")),
    ],
)
def test_any_scope_and_the_names_of_every_version(scope, cell, names):
    arrays = variables(scope, cell, names=names)
    model = tensorflow_model(arrays)
    check(model, arrays)
    assert (model.config.embedding_size, model.config.hidden_sizes, model.config.vocab_size) == (
        3,
        (2, 4),
        6,
    )


def test_other_precisions(tensorflow, tmp_path):
    arrays = variables()
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    check(read_model(write_checkpoint(tmp_path / "m", wide)), arrays)
    half = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in arrays.items()}
    exact = {name: (array.astype(np.uint32) << 16).view(np.float32) for name, array in half.items()}
    check(read_model(write_checkpoint(tmp_path / "m", half)), exact)


def test_slots_and_scalars_are_left_out_and_others_named():
    arrays = variables()
    extra = {
        "global_step": np.array(5),
        "Model/Variable": np.float32(1.0),
        "beta1_power": np.float32(0.9),
        "Model/embedding/Adam": np.ones((6, 3), np.float32),
        "Model/softmax_w/Momentum": np.ones(2, np.float32),
    }
    extra = {name: np.asarray(array) for name, array in extra.items()}
    model = tensorflow_model({**arrays, **extra})
    check(model, arrays)
    assert all(any(name in note for note in model.notes) for name in extra)
    for wrong, problem in [
        ({"Model/attention": np.ones((2, 2), np.float32)}, "unknown are 'Model/attention'"),
        ({"Other/embedding": np.ones((6, 3), np.float32)}, "'Model/embedding', 'Other/embedding'"),
        (
            {"X/multi_rnn_cell/cell_0/lstm_cell/kernel": np.ones((2, 2), np.float32)},
            "kernel of layer 0",
        ),
        (
            {"Model/RNN/multi_rnn_cell/cell_3/lstm_cell/kernel": np.ones((2, 2), np.float32)},
            "kernel of layer 2",
        ),
    ]:
        with pytest.raises(JaxlmError, match=problem):
            tensorflow_model({**arrays, **wrong})
    for name in arrays:
        with pytest.raises(JaxlmError, match=r"missing are|layer"):
            tensorflow_model({key: array for key, array in arrays.items() if key != name})
        with pytest.raises(JaxlmError, match=f"{name}' has the shape|expected"):
            tensorflow_model({**arrays, name: np.ones((5, 5), np.float32)})
        with pytest.raises(JaxlmError, match=f"{name}' holds .*not finite"):
            tensorflow_model({**arrays, name: arrays[name] * np.float32(np.inf)})
        with pytest.raises(JaxlmError, match=f"{name}' holds 'int64'"):
            tensorflow_model({**arrays, name: np.ones(arrays[name].shape, np.int64)})


def test_a_missing_tensorflow_names_the_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(JaxlmError, match=r"needs TensorFlow: pip install 'jaxlm\[tensorflow\]'$"):
        read_model(write_checkpoint(tmp_path / "m", variables()))


def test_missing_short_and_changed_data(tensorflow, tmp_path):
    prefix = write_checkpoint(tmp_path / "m", variables())
    shard = tmp_path / "m.data-00000-of-00001"
    content = shard.read_bytes()
    for name in ("m", "m.index", "m.meta", "m.data-00000-of-00001"):
        assert read_model(tmp_path / name).config.vocab_size == 6
    shard.write_bytes(content[:-1])
    with pytest.raises(JaxlmError, match=r"may be damaged: 'Read less bytes"):
        read_model(prefix)
    shard.write_bytes(content[:9] + bytes([content[9] ^ 4]) + content[10:])
    with pytest.raises(JaxlmError, match=r"may be damaged: .*Checksum does not match"):
        read_model(prefix)
    shard.unlink()
    with pytest.raises(JaxlmError, match=r"m\.data-00000-of-00001; No such file"):
        read_model(prefix)


def test_a_missing_index_is_named(tmp_path):
    with pytest.raises(JaxlmError, match=r"its 'm\.index': No such file"):
        read_model(tmp_path / "m.meta")


def entry(shape: tuple[int, ...], kind: int = 1, offset: int = 0, size: int = 0) -> bytes:
    dims = b"".join(message(2, number(1, extent)) for extent in shape)
    return number(1, kind) + message(2, dims) + number(4, offset) + number(5, size)


EMPTY = bytes([6 << 3 | 5]) + struct.pack("<I", masked(0))  # the checksum of no bytes


@pytest.mark.parametrize(
    "claim",
    [
        {b"Model/embedding": entry((1 << 20, 1 << 18), size=1 << 40)},
        {b"Model/embedding": entry((1 << 61, 1 << 61), size=1 << 40)},
        {b"Model/embedding": entry((6, 3), size=72, offset=1 << 61)},
        {b"Model/embedding": entry((6, 3), size=71)},
        {b"Model/embedding": entry((6, 3), kind=7, size=4)},
        {b"Model/embedding": entry((6, 3), kind=99, size=72)},
        {b"Model/embedding": entry((6, 3), size=72) + message(7, b"")},
        {b"Model/embedding": entry((1,) * 300, size=4)},
        {b"Model/embedding": entry((0, 1 << 63)) + EMPTY},
        {b"Model/embedding": b"\x0f"},
        {b"Model/embedding": b"\x08" + b"\xff" * 11},
        {b"": b""},
        {b"": number(1, 1 << 40)},
        {b"\xff": entry((1,), size=4)},
    ],
)
def test_an_index_that_claims_too_much_is_refused(tensorflow, tmp_path, claim):
    """TensorFlow itself aborts its process at some of these."""
    with pytest.raises(JaxlmError, match=r"TensorFlow cannot read it|missing are") as error:
        read_model(write_checkpoint(tmp_path / "m", variables(), more=claim))
    assert str(error.value).isprintable() and len(str(error.value)) < 1500


def test_many_variables_of_the_same_bytes_are_refused(tensorflow, tmp_path):
    shape = (64, 64)
    arrays = {**variables(sizes=(3, 3)), "Model/large": np.zeros(shape, np.float32)}
    offset = sum(array.nbytes for array in arrays.values()) - arrays["Model/large"].nbytes
    checksum = struct.pack("<I", masked(slow_crc(arrays["Model/large"].tobytes())))
    same = entry(shape, offset=offset, size=arrays["Model/large"].nbytes)
    same += varint(6 << 3 | 5) + checksum
    more = {b"Model/copy%d" % place: same for place in range(8)}
    with pytest.raises(JaxlmError, match=r"variables claim .* more than the checkpoint can hold"):
        read_model(write_checkpoint(tmp_path / "many", arrays, more=more))


def test_the_words_of_a_folder_are_not_the_tutorial_s(tmp_path):
    with pytest.raises(
        DataError, match="is a folder, whose words would be numbered as PyTorch's programs do"
    ):
        model_vocabulary(tmp_path, 6, tensorflow=True)


def test_a_checkpoint_file_names_something_in_its_own_folder(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for prefix in (folder / "model.ckpt-2", folder / 'café"3', tmp_path / "train"):
        Path(f"{prefix}.index").touch()
    latest = folder / "checkpoint"
    for name, file in (
        ("model.ckpt-2", "model.ckpt-2"),
        ("/home/someone/train/model.ckpt-2", "model.ckpt-2"),
        (r"caf\303\251\"3", 'café"3'),
    ):
        latest.write_text(
            f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "../outside"\n'
        )
        assert checkpoint_prefix(folder) == checkpoint_prefix(latest) == folder / file
    for name in (
        "../outside",
        "a/../../outside",
        "",
        ".",
        "gone",
        "/etc/passwd",
        r"a\000b",
        r"\033[2J",
    ):
        latest.write_text(f'model_checkpoint_path: "{name}"\n')
        with pytest.raises(JaxlmError) as error:
            read_model(folder)
        assert str(error.value).isprintable()
    (folder / "loop").symlink_to("loop")
    latest.write_text('model_checkpoint_path: "loop"\n')
    with pytest.raises(JaxlmError, match="cannot import"):
        read_model(folder)
    latest.write_text("nothing\n")
    with pytest.raises(JaxlmError, match="model_checkpoint_path"):
        read_model(folder)


@pytest.mark.parametrize(
    "filling", [b"\n", b" ", b"model_checkpoint_path:", b'model_checkpoint_path: "\\']
)
def test_a_checkpoint_file_takes_time_that_is_linear_in_its_size(tmp_path, filling):
    (tmp_path / "checkpoint").write_bytes(filling * ((1 << 20) // len(filling)))
    start = time.process_time()
    with pytest.raises(JaxlmError, match="model_checkpoint_path"):
        read_model(tmp_path)
    assert time.process_time() - start < 20


@settings(
    max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_checkpoint_is_read_or_refused_in_one_sentence(
    tensorflow, tmp_path_factory, data
):
    base = tmp_path_factory.getbasetemp() / "damaged"
    source = base / "source"
    if not source.exists():
        source.mkdir(parents=True)
        write_checkpoint(source / "m", variables())
        (source / "checkpoint").write_text('model_checkpoint_path: "m"\n')
    folder = base / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    path = folder / data.draw(st.sampled_from(["m.index", "m.data-00000-of-00001", "checkpoint"]))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "write", "seal"])):
        case "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[place:]
        case "write":
            content[place : place + 4] = data.draw(st.binary(min_size=4, max_size=4))
        case "seal" if (
            path.suffix == ".index"
        ):  # a damaged first block under a checksum that is right
            size = next(
                size
                for size in range(len(content))
                if masked(slow_crc(bytes(content[: size + 1])))
                == int.from_bytes(content[size + 1 : size + 5], "little")
            )
            place %= size
            content[place] ^= 1 << data.draw(st.integers(0, 7))
            content[size + 1 : size + 5] = struct.pack(
                "<I", masked(slow_crc(bytes(content[: size + 1])))
            )
    path.write_bytes(content)
    start = time.process_time()
    try:
        read_model(folder)
    except JaxlmError as error:
        assert str(error).isprintable() and len(str(error)) < 1500
    assert time.process_time() - start < 20
