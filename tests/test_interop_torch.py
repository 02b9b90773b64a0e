"""Models of PyTorch files: recorded ones of the published codes,
and ones that are put together here.
"""

import json
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from interop_files import (
    ORDERED,
    WRITERS,
    Call,
    New,
    Raw,
    Ref,
    Storages,
    golden,
    log_probabilities,
    module,
    old_file,
    opcodes,
    recorded,
    rnn_model,
    torch_answers,
    weights,
    zip_file,
)
from safetensors.numpy import save as bytes_of

from jaxlm.base.errors import DataError, JaxlmError
from jaxlm.interop.importing import model_vocabulary, read_model

TOKENS = [0, 3, 6, 1, 1, 5, 2]
FILES = recorded("torch_import", "files")


@pytest.fixture
def saved(tmp_path: Path):
    """Writes bytes to a file and reads its model."""

    def read(data: bytes):
        (tmp_path / "model.pt").write_bytes(data)
        return read_model(tmp_path / "model.pt")

    return read


@pytest.mark.parametrize("name", FILES)
def test_published_models_answer_as_their_own_code(name):
    case = FILES[name]
    folder = golden("torch_import")
    model = read_model(folder / name)
    vocab = model_vocabulary(folder / case["vocab"], model.config.vocab_size)
    assert (model.config.tied, model.config.vocab_size, model.config.embedding_size) == (
        case["tied"],
        len(vocab),
        case["embedding"],
    )
    assert model.config.hidden_sizes == tuple(case.get("widths", [case["hidden"]] * case["layers"]))
    assert vocab.decode(case["tokens"]) == case["words"]
    np.testing.assert_allclose(log_probabilities(model, case["tokens"]), case["logprob"], atol=1e-7)
    assert all(
        leaf.dtype == np.float32 and leaf.flags.c_contiguous
        for layer in [
            *model.params["layers"],
            model.params["softmax"],
            {"": model.params["embedding"]},
        ]
        for leaf in layer.values()
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("form", ["module", "state_dict", "parallel", "checkpoint", "wrapped"])
def test_every_form_of_a_model_gives_the_same_answers(saved, layout, form, tied):
    arrays = weights(sizes=(3, 4) if tied else (3, 5), tied=tied)
    storages = Storages("cuda:0", old=layout == "old")
    if form in ("module", "wrapped"):
        value = rnn_model(arrays, storages)
        if form == "wrapped":
            value = [
                module(
                    "torch.nn.parallel.data_parallel.DataParallel",
                    modules={"module": value},
                    device_ids=[0],
                ),
                New(Ref("torch.optim.sgd.SGD"), {"param_groups": [], "state": {}}),
            ]
    else:
        tensors = {name: storages.tensor(array) for name, array in arrays.items()}
        tensors.setdefault("decoder.weight", tensors["encoder.weight"])
        value = {
            ("module." if form == "parallel" else "") + name: tensor
            for name, tensor in tensors.items()
        }
        if form == "checkpoint":
            dtype = Call(Ref("numpy.dtype"), ("f8", False, True))
            scalar = Call(Ref("numpy.core.multiarray.scalar"), (dtype, b"8" * 8))
            other = storages.tensor(np.ones(3, np.float32))
            value = {
                "epoch": 3,
                "class_weight": other,
                "model": value,
                "loss": other,
                "best": scalar,
                "optimizer": {"state": {0: {"exp_avg": other}, "weight": other}},
            }
    model = saved(WRITERS[layout](value, storages))
    assert model.config.tied == tied and ("kernel" in model.params["softmax"]) != tied
    np.testing.assert_allclose(
        log_probabilities(model, TOKENS), torch_answers(arrays, TOKENS), atol=1e-6
    )


@pytest.mark.parametrize(("kind", "tolerance"), [("f2", 1e-2), ("f8", 1e-6), ("bf16", 1e-1)])
def test_other_precisions(saved, kind, tolerance):
    arrays = weights()
    storages = Storages()
    if kind == "bf16":  # the upper half of float32
        stored = {
            name: (array.view(np.uint32) >> 16).astype("u2") for name, array in arrays.items()
        }
        exact = {
            name: (array.astype(np.uint32) << 16).view(np.float32) for name, array in stored.items()
        }
    else:
        stored = {name: array.astype(kind) for name, array in arrays.items()}
        exact = stored
    model = saved(
        zip_file({name: storages.tensor(array) for name, array in stored.items()}, storages)
    )
    np.testing.assert_allclose(
        log_probabilities(model, TOKENS), torch_answers(exact, TOKENS), atol=1e-6
    )
    np.testing.assert_allclose(
        log_probabilities(model, TOKENS), torch_answers(arrays, TOKENS), atol=tolerance
    )


@pytest.mark.parametrize("layout", WRITERS)
def test_tensors_are_views_with_offsets_and_strides_into_shared_storages(saved, layout):
    arrays = weights()
    storages = Storages(old=layout == "old")
    flat = np.concatenate(
        [array.T.ravel() for array in arrays.values()]
    )  # all weights in one storage, transposed
    key = storages.hold(flat)
    offset = 0
    value = {}
    for name, array in arrays.items():
        strides = tuple(stride // 4 for stride in np.asfortranarray(array).strides)
        value[name] = storages.view(key, array.shape, strides, offset)
        offset += array.size
    model = saved(WRITERS[layout](value, storages))
    np.testing.assert_allclose(
        log_probabilities(model, TOKENS), torch_answers(arrays, TOKENS), atol=1e-6
    )


def test_an_old_file_has_storages_that_are_views_of_others(saved):
    arrays = weights()
    storages = Storages(old=True)
    flat = np.concatenate([array.ravel() for array in arrays.values()])
    key = storages.hold(flat)
    start = 0
    value = {}
    for name, array in arrays.items():
        strides = tuple(stride // 4 for stride in array.strides)
        value[name] = storages.view(
            key, array.shape, strides, 0, (f"view of {name}", start, array.size)
        )
        start += array.size
    model = saved(old_file(value, storages))
    np.testing.assert_allclose(
        log_probabilities(model, TOKENS), torch_answers(arrays, TOKENS), atol=1e-6
    )
    wrong = {**value, "decoder.bias": storages.view(key, (7,), (1,), 0, ("beyond", start - 3, 7))}
    with pytest.raises(JaxlmError, match=f"a view of the storage .* within its {start:,} elements"):
        saved(old_file(wrong, storages))


def test_parameters_and_dicts_of_old_versions(saved):
    """PyTorch 0.3: a Parameter is a class that is called; Python 2:
    an OrderedDict is made of a list of pairs.
    """
    arrays = weights()
    storages = Storages("cuda:0", old=True)
    pairs = []
    for name, array in arrays.items():
        tensor = storages.tensor(array)
        old = Call(Ref("torch._utils._rebuild_tensor"), tensor.arguments[:4])
        pairs.append(
            [name, Call(Ref("torch.nn.parameter.Parameter"), (old,), (True, False, Call(ORDERED)))]
        )
    model = saved(old_file(Call(ORDERED, (pairs,), {"_metadata": Call(ORDERED)}), storages))
    np.testing.assert_allclose(
        log_probabilities(model, TOKENS), torch_answers(arrays, TOKENS), atol=1e-6
    )


@pytest.mark.parametrize("dropped", [True, False])
def test_awd_lstm_keeps_a_module_a_layer_with_raw_weights(saved, dropped):
    arrays = weights(width=5, sizes=(3, 5), tied=True)
    storages = Storages()
    layers = {}
    for place in range(2):
        own = {
            name.removeprefix("rnn.").replace(f"_l{place}", "_l0"): storages.tensor(array)
            for name, array in arrays.items()
            if name.endswith(f"_l{place}")
        }
        if dropped:
            own["weight_hh_l0_raw"] = own.pop("weight_hh_l0")
        stale = storages.tensor(np.zeros((2, 2), np.float32))  # a dropped copy, no parameter
        lstm = module("torch.nn.modules.rnn.LSTM", own, mode="LSTM")
        lstm.state.update({"weight_hh_l0": stale} if dropped else {})
        wrap = module("weight_drop.WeightDrop", modules={"module": lstm})
        layers[str(place)] = wrap if dropped else lstm
    encoder = {"weight": storages.tensor(arrays["encoder.weight"])}
    decoder = {**encoder, "bias": storages.tensor(arrays["decoder.bias"])}
    model = module(
        "model.RNNModel",
        modules={
            "encoder": module("torch.nn.modules.sparse.Embedding", encoder),
            "rnns": module("torch.nn.modules.container.ModuleList", modules=layers),
            "decoder": module("torch.nn.modules.linear.Linear", decoder),
        },
    )

    def whole(splits: int):
        criterion = module("splitcross.SplitCrossEntropyLoss", nsplits=splits)
        return [model, criterion, New(Ref("torch.optim.asgd.ASGD"), {})]

    read = saved(zip_file(whole(1), storages))
    assert read.config.tied and read.config.hidden_sizes == (3, 5)
    np.testing.assert_allclose(
        log_probabilities(read, TOKENS), torch_answers(arrays, TOKENS), atol=1e-6
    )
    with pytest.raises(JaxlmError, match=r"SplitCrossEntropyLoss.* 3 splits"):
        saved(zip_file(whole(3), storages))


def test_equal_matrices_in_two_storages_are_taken_as_tied(saved):
    arrays = weights(sizes=(3, 4))
    storages = Storages()
    arrays["decoder.weight"] = arrays["encoder.weight"].copy()
    model = saved(
        zip_file({name: storages.tensor(array) for name, array in arrays.items()}, storages)
    )
    assert model.config.tied and any("tied" in note for note in model.notes)


@pytest.mark.parametrize("number", [0, 1])
def test_constant_matrices_are_not_taken_as_tied(saved, number):
    arrays = weights(sizes=(3, 4))
    storages = Storages()
    for name in ("encoder.weight", "decoder.weight"):
        arrays[name] = np.full_like(arrays["encoder.weight"], number)
    model = saved(
        zip_file({name: storages.tensor(array) for name, array in arrays.items()}, storages)
    )
    assert not model.config.tied and model.params["softmax"]["kernel"].shape == (4, 7)


def test_biases_that_are_missing_are_zero(saved):
    arrays = weights()
    storages = Storages()
    kept = {name: array for name, array in arrays.items() if "bias" not in name}
    model = saved(
        zip_file({name: storages.tensor(array) for name, array in kept.items()}, storages)
    )
    zeroed = {name: array if name in kept else 0 * array for name, array in arrays.items()}
    np.testing.assert_allclose(
        log_probabilities(model, TOKENS), torch_answers(zeroed, TOKENS), atol=1e-6
    )


def cell(gates: int) -> dict[str, np.ndarray]:
    """A state_dict whose recurrent layers have another number of gates."""
    return {
        name: array[: len(array) // 4 * gates] if "rnn" in name else array
        for name, array in weights().items()
    }


def without(*names: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in weights().items() if name not in names}


REFUSED = [
    (cell(3), "rnn.weight_hh_l0' is 9x3: .*GRU"),
    (cell(1), "plain RNN"),
    (without("encoder.weight"), "missing are 'encoder.weight'"),
    (without("decoder.weight"), "missing are 'decoder.weight'"),
    (without("rnn.bias_hh_l1"), "missing are 'bias_hh of layer 1'"),
    (without("rnn.weight_ih_l0"), "missing are 'weight_ih of layer 0'"),
    (
        {name: array for name, array in weights().items() if "_l0" not in name},
        "missing are 'bias_hh of layer 0'",
    ),
    (weights() | {"latent.weight": np.ones((2, 2), np.float32)}, "unknown are 'latent.weight'"),
    (
        weights() | {"rnn.weight_ih_l0_reverse": np.ones((2, 2), np.float32)},
        "unknown are 'rnn.weight_ih_l0_rev",
    ),
    (
        weights() | {"other.weight_ih_l0": np.ones((2, 2), np.float32)},
        "several recurrent modules .'other', 'rnn'",
    ),
    (
        {
            name.replace("rnn.weight_hh_l1", "other.1.weight_hh_l0"): array
            for name, array in weights().items()
        },
        "several",
    ),
    (
        weights() | {"rnn.0.weight_ih_l0": np.ones((2, 2), np.float32)},
        "layer 0 .'rnn.0.weight_ih_l0', 'rnn.weight_ih",
    ),
    (
        weights() | {"decoder.weight": np.ones((7, 4), np.float32)},
        r"decoder.weight' has .* \[7, 4\], .*\[7, 5\]",
    ),
    (
        weights() | {"encoder.weight": np.ones((7, 6), np.float32)},
        r"weight_ih_l0' has .* \[12, 4\], .*\[12, 6\]",
    ),
    (weights() | {"rnn.bias_hh_l1": np.ones(3, np.float32)}, r"bias_hh_l1' has the shape \[3\]"),
    (
        weights() | {"encoder.weight": np.full((7, 4), np.nan, np.float32)},
        "encoder.weight' holds 28 numbers",
    ),
    (weights() | {"decoder.bias": np.full(7, 1e300)}, "decoder.bias' holds 7 numbers .*float32"),
    (weights() | {"encoder.weight": np.ones((7, 4), np.int64)}, "encoder.weight' holds 'int64'"),
    ({"fc.weight": np.ones((2, 2), np.float32)}, "expected the weights of an LSTM"),
    ({"\x1b]0;x\x07.weight": np.ones((2, 2), np.float32)}, r"\\x1b"),
]


@pytest.mark.parametrize(("arrays", "problem"), REFUSED, ids=[problem for _, problem in REFUSED])
def test_what_is_missing_unknown_or_of_another_shape_is_named(saved, arrays, problem):
    storages = Storages()
    with pytest.raises(JaxlmError, match=problem) as refused:
        saved(zip_file({name: storages.tensor(array) for name, array in arrays.items()}, storages))
    assert "model.pt" in str(refused.value) and str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        (cell(3), "'rnn.weight_hh_l0' is 9x3: that is a GRU"),
        (cell(1), "'rnn.weight_hh_l0' is 3x3: that is a plain RNN"),
        (
            weights() | {"rnn.weight_ih_l0_reverse": np.ones((2, 2), np.float32)},
            "unknown are 'rnn.weight_ih_l0_rev",
        ),
        (
            weights() | {"rnn.weight_hr_l0": np.ones((2, 2), np.float32)},
            "unknown are 'rnn.weight_hr_l0'",
        ),
    ],
)
def test_what_a_module_computes_otherwise_is_refused(saved, arrays, problem):
    """A GRU, a plain RNN, a bidirectional LSTM and one that projects its state (proj_size)."""
    storages = Storages()
    with pytest.raises(JaxlmError, match=problem):
        saved(zip_file(rnn_model(arrays, storages), storages))


def test_an_embedding_with_a_largest_norm_is_refused(saved):
    storages = Storages()
    model = rnn_model(weights(), storages)
    model.state["_modules"]["encoder"].state["max_norm"] = 1.0
    with pytest.raises(JaxlmError, match=r"'encoder' .*max_norm"):
        saved(zip_file(model, storages))


def test_two_models_in_one_file_are_named(saved):
    storages = Storages()
    both = {
        name: {key: storages.tensor(array) for key, array in weights().items()}
        for name in ("model", "average")
    }
    with pytest.raises(JaxlmError, match=r"2 models .'average', 'model'"):
        saved(zip_file(both, storages))


CLAIMS = {
    "a terabyte": ((1 << 18, 1 << 20), (1 << 20, 1), 0),
    "a terabyte with strides of 0": ((1 << 18, 1 << 20), (0, 0), 0),
    "beyond the end": ((7, 4), (4, 1), 1),
    "a stride beyond the end": ((7, 4), (5, 1), 0),
    "a negative stride": ((7, 4), (-4, 1), 27),
    "a negative offset": ((7, 4), (4, 1), -1),
    "a negative size": ((-7, -4), (4, 1), 0),
    "a size that is no number": (("7", 4), (4, 1), 0),
    "an absurd size": ((10**30, 10**30), (1, 1), 0),
    "many dimensions": ((1,) * 64, (1,) * 64, 0),
    "fewer strides": ((7, 4), (4,), 0),
    "a size that NumPy would choose": ((-1,), (4,), 8),
    "a stride that wraps around": ((5,), (1 << 60,), 0),
}


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("claim", CLAIMS)
def test_a_tensor_cannot_claim_more_than_its_storage_holds(saved, claim, layout):
    storages = Storages(old=layout == "old")
    value = {name: storages.tensor(array) for name, array in weights().items()}
    shape, strides, offset = CLAIMS[claim]
    value["encoder.weight"] = storages.view("0", shape, strides, offset)
    with pytest.raises(JaxlmError, match="tensor"):
        saved(WRITERS[layout](value, storages))


@pytest.mark.parametrize("layout", WRITERS)
def test_a_tensor_of_an_empty_storage_has_no_elements(saved, layout):
    storages = Storages(old=layout == "old")
    value = {name: storages.tensor(array) for name, array in weights().items()}
    value["other"] = storages.view(storages.hold(np.zeros(0, np.float32)), (9,), (1,))
    with pytest.raises(JaxlmError, match="a storage of 0 elements is damaged"):
        saved(WRITERS[layout](value, storages))


@pytest.mark.parametrize("layout", WRITERS)
def test_a_storage_cannot_claim_more_than_the_file_holds(saved, layout):
    storages = Storages(old=layout == "old")
    value = {name: storages.tensor(array) for name, array in weights().items()}
    data = WRITERS[layout](value, storages)
    big = Storages(old=layout == "old", arrays=dict(storages.arrays))
    big.arrays["0"] = np.lib.stride_tricks.as_strided(big.arrays["0"], (1 << 40,), (0,))
    value["encoder.weight"] = big.view("0", (1 << 20, 1 << 20), (1 << 20, 1))
    small = Storages(old=layout == "old", arrays=dict(storages.arrays))
    with pytest.raises(JaxlmError, match="storage '0' claims 4,398,046,511,104 bytes"):
        saved(WRITERS[layout](value, small))
    for length in range(0, len(data), 97):
        with pytest.raises(JaxlmError):
            saved(data[:length])


def test_what_an_archive_must_not_be(saved):
    storages = Storages()
    value = {name: storages.tensor(array) for name, array in weights().items()}
    assert saved(zip_file(value, storages, compression=zipfile.ZIP_DEFLATED)).config.vocab_size == 7
    with pytest.raises(JaxlmError, match="packed in a way"):
        saved(zip_file(value, storages, compression=zipfile.ZIP_LZMA))
    with pytest.raises(JaxlmError, match="'data/0' is not in the archive"):
        saved(zip_file(value, storages, without="data/0"))
    with pytest.raises(JaxlmError, match=r"one data\.pkl"):
        saved(zip_file(value, storages, without="data.pkl"))
    with pytest.raises(JaxlmError, match="TorchScript"):
        saved(zip_file(value, storages, more={"constants.pkl": b""}))
    with pytest.raises(JaxlmError, match="byte order"):
        saved(zip_file(value, storages, more={"byteorder": b"\x1b[0m"}))
    with pytest.raises(JaxlmError, match="byte order little, found 'big'"):
        saved(zip_file(value, storages, more={"byteorder": b"big"}))
    bomb = Storages()
    bomb.arrays["0"] = np.zeros(1 << 25, np.float32)
    value["encoder.weight"] = bomb.view("0", (7, 4), (4, 1))
    bomb.arrays |= {key: array for key, array in storages.arrays.items() if key != "0"}
    with pytest.raises(JaxlmError, match=r"unpacks to 134,[0-9,]* bytes"):
        saved(zip_file(value, bomb, compression=zipfile.ZIP_DEFLATED))


def test_tensors_cannot_multiply_the_bytes_of_one_storage(saved):
    storages = Storages()
    value = {name: storages.tensor(array) for name, array in weights().items()}
    key = storages.hold(np.zeros(4000, np.float32))
    value |= {
        f"rnn.weight_hh_l{place}": storages.view(key, (40, 100), (100, 1)) for place in range(2, 40)
    }
    with pytest.raises(JaxlmError, match="4 times"):
        saved(zip_file(value, storages))


def test_safetensors_of_no_metadata_and_of_many_names_for_one_tensor(saved):
    arrays = weights()
    data = bytes_of(arrays)
    assert saved(with_metadata(data, None)).config.vocab_size == saved(data).config.vocab_size
    alias = {
        f"rnn.{part}_l{place}": f"rnn.{part}_l1"
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for place in range(2, 30)
    }
    with pytest.raises(JaxlmError, match="4 times"):
        saved(with_metadata(data, alias))


def with_metadata(data: bytes, metadata: dict | None) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.dumps({**json.loads(data[8 : 8 + size]), "__metadata__": metadata}).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


@pytest.mark.parametrize("told", [{}, {"neg": True}, {"conj": True}])
def test_a_view_that_negates_what_is_stored_is_refused(saved, told):
    storages = Storages()
    value = {name: storages.tensor(array) for name, array in weights().items()}
    call = value["encoder.weight"]
    value["encoder.weight"] = replace(call, arguments=(*call.arguments[:6], told))
    if not told:
        assert saved(zip_file(value, storages)).config.vocab_size == 7
        return
    with pytest.raises(JaxlmError, match=r"a view that negates or conjugates .*resolve_neg"):
        saved(zip_file(value, storages))


def test_names_that_are_no_files(tmp_path):
    for name in (".index", ".meta", str(tmp_path / ".meta")):
        with pytest.raises(JaxlmError, match="cannot import"):
            read_model(name)
    with pytest.raises(DataError, match="cannot be read"):
        model_vocabulary("a" * 300, 7)


def test_module_graphs_that_never_end(saved):
    """A module that holds itself; one whose 2**40 paths lead through 40 modules;
    and wide ones that share a dict.
    """
    begun = (
        b"cmodel\nRNNModel\n)\x81q\x01}("
        + opcodes("_parameters")
        + b"}"
        + opcodes("_modules")
        + b"}"
    )
    loop = begun + opcodes("a") + b"h\x01sub"
    paths = opcodes(module("torch.nn.modules.linear.Linear")) + b"q\x000"
    for _ in range(40):
        paths += begun + b"(" + opcodes("a") + b"h\x00" + opcodes("b") + b"h\x00uubq\x000"
    wide = opcodes({str(place): None for place in range(50_000)}) + b"q\x000"
    shared = b"cmodel\nA\n)\x81}" + opcodes("_parameters") + b"h\x00sb"
    states = b"cmodel\nA\n)\x81h\x00b"
    for code in (
        loop,
        paths + b"h\x00",
        *(wide + b"](" + one * 5000 + b"e" for one in (shared, states)),
    ):
        start = time.process_time()
        with pytest.raises(JaxlmError, match="without named weights"):
            saved(zip_file(Raw(code), Storages()))
        assert time.process_time() - start < 20


def test_names_of_nested_modules_do_not_grow_for_ever(saved):
    nested = module("model.A")
    for _ in range(3):
        nested = module("model.A", modules={"a" * 400: nested})
    with pytest.raises(JaxlmError, match="nested too deeply"):
        saved(zip_file(nested, Storages()))


def test_a_module_of_two_names_is_one_model(saved):
    storages = Storages()
    nn = opcodes(rnn_model(weights(), storages)) + b"q\x01"
    both = (
        b"]("
        + nn
        + opcodes(module("torch.nn.DataParallel", modules={"module": Raw(b"h\x01")}))
        + b"e"
    )
    assert saved(zip_file(Raw(both), storages)).config.vocab_size == 7


def test_an_archive_that_memory_cannot_hold_is_refused_before_it_is_unpacked(monkeypatch):
    path = next(path for name in FILES if zipfile.is_zipfile(path := golden("torch_import") / name))
    monkeypatch.setattr("jaxlm.runs.ram.available", lambda: 1000)
    with pytest.raises(JaxlmError, match="what the archive holds needs at least"):
        read_model(path)
