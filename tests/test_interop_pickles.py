"""Pickles that a stranger made to do harm: named, refused, and nothing of them is run."""

import copyreg
import io
import os
import pickle
import re
import resource
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_files import (
    WRITERS,
    Call,
    New,
    Persistent,
    Raw,
    Ref,
    Storages,
    golden,
    old_file,
    opcodes,
    pickled,
    rnn_model,
    weights,
    zip_file,
)

from jaxlm.base.errors import JaxlmError
from jaxlm.interop import torch_pickle
from jaxlm.interop.importing import read_model

LONG = 20.0  # seconds of the processor


def refused(path: Path, data: bytes) -> str:
    """The one sentence with which a file is refused, in time."""
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(JaxlmError) as error:
        read_model(path)
    assert time.process_time() - start < LONG
    assert (
        str(error.value).isprintable()
        and len(str(error.value)) < 1500
        and path.name in str(error.value)
    )
    return str(error.value)


class Command:
    """What `pickle` itself turns into a call of os.system."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):

        return os.system, (f"touch {self.path}",)


def touch(function: str, mark: Path) -> dict[str, bytes]:
    """Every way in which a pickle can call a function."""
    module, name = function.rsplit(".", 1)
    argument = opcodes(f"touch {mark}")
    plain = Ref(function)
    stacked = opcodes(module) + opcodes(name) + b"\x93"
    return {
        "REDUCE": opcodes(Call(plain, (f"touch {mark}",))),
        "STACK_GLOBAL": stacked + b"(" + argument + b"tR",
        "NEWOBJ": opcodes(New(plain, None, (f"touch {mark}",))),
        "NEWOBJ_EX": opcodes(plain) + opcodes((f"touch {mark}",)) + b"}\x92",
        "INST": b"(" + argument + f"i{module}\n{name}\n".encode(),
        "OBJ": b"(" + opcodes(plain) + argument + b"o",
        "BUILD": opcodes(New(Ref("model.RNNModel")))
        + opcodes(Call(plain, (f"touch {mark}",)))
        + b"b",
        "nested": opcodes(
            Call(Ref("torch._utils._rebuild_parameter"), (Call(plain, (f"touch {mark}",)), True))
        ),
        "type": opcodes(
            Call(
                Ref("torch._tensor._rebuild_from_type_v2"), (plain, None, (f"touch {mark}",), None)
            )
        ),
        "persistent": opcodes(
            Persistent(("storage", Call(plain, (f"touch {mark}",)), "0", "cpu", 1))
        ),
        "key": b"}(" + opcodes(Call(plain, (f"touch {mark}",))) + b"Nu",
        "memo": opcodes(plain) + b"q\x000h\x00" + opcodes((f"touch {mark}",)) + b"R",
    }


@pytest.mark.parametrize("way", touch("os.system", Path("x")))
@pytest.mark.parametrize(
    "function",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "__builtin__.exec",
        "subprocess.Popen",
        "commands.getoutput",
        "torch.hub.load",
        "numpy.testing._private.utils.runstring",
    ],
)
def test_a_call_is_named_and_never_made(tmp_path, function, way):
    mark = tmp_path / "mark"
    code = touch(function, mark)[way]
    inert = way.startswith("NEWOBJ") and function.startswith(
        ("torch", "numpy")
    )  # an object that is only its name
    for data in (
        zip_file(Raw(code), Storages()),
        old_file(Raw(code), Storages(old=True)),
        b"\x80\x02" + code + b".",
    ):
        message = refused(tmp_path / "model.pt", data)
        if inert:
            continue
        if way not in ("type", "OBJ"):  # (whatever OBJ makes is refused before names are read)
            assert function.rsplit(".", 1)[1] in message
        assert "nothing was run" in message
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_pythons_own_pickles_of_a_command(tmp_path, protocol):
    mark = tmp_path / "mark"
    data = pickle.dumps({"model": Command(mark)}, protocol)
    assert "system" in refused(tmp_path / "model.pt", data)
    value = Raw(data[2:-1] if protocol > 1 else data[:-1])
    assert "system" in refused(tmp_path / "model.pt", zip_file(value, Storages()))
    assert not mark.exists()
    assert "system" in refused(tmp_path / "model.pt", pickled(0x1950A86A20F9469CFC6C) + data)


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (
            opcodes(Call(Ref("builtins.getattr"), (Ref("torch.nn.Linear"), "mro"))),
            "getattr of 'torch.nn.Linear'",
        ),
        (opcodes(Call(Ref("builtins.getattr"), ("text", "format"))), "getattr"),
        (
            opcodes(Call(Ref("builtins.getattr"), (New(Ref("model.A")), "run"))) + b")R",
            "asks to call a Instance",
        ),
        (
            opcodes(Ref("torch.Tensor")) + opcodes({"__reduce__": None}) + b"b",
            "changes 'torch.Tensor'",
        ),
        (opcodes(Call(Ref("functools.partial"), (Ref("model.A"),))), "functools.partial"),
        (opcodes(Call(Ref("builtins.map"), ())), "builtins.map"),
        (opcodes(Call(Ref("model.RNNModel"), ("LSTM",))), "asks to call 'model.RNNModel'"),
        (opcodes(Call(Ref("torch.load"), ("x",))), "asks to call 'torch.load'"),
        (opcodes(Ref("os.path.join")), "os.path.join"),
        (opcodes(Ref("sys.modules")), "sys.modules"),
        (b"\x82\x01", "EXT1"),
        (b"Pname\n", "PERSID"),
        (b"\x97", "NEXT_BUFFER"),
        (opcodes(Persistent(("module", Ref("os.system"), "a", "b"))), "os.system"),
        (opcodes("\x1b]0;title\x07") + opcodes("n") + b"\x93)R", r"\\x1b"),
    ],
)
def test_what_else_could_run_code_is_named(tmp_path, code, named):

    assert re.search(
        named.replace("\\\\", r"\\"),
        refused(tmp_path / "model.pt", old_file(Raw(code), Storages())),
    )


BOMBS = {
    "lists in lists": b"]" * 100_000 + b"a" * 99_999,
    "tuples in tuples": b")" + b"\x85" * 100_000,
    "doubling lists": b"]q\x00" + b"](h\x00h\x00eq\x00" * 60,
    "doubling tuples as a key": b")q\x00" + b"(h\x00h\x00tq\x00" * 60 + b"}h\x00Ns",
    "doubling dicts": b"}q\x00" + b"}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00uq\x00" * 60,
    "doubling lists that are called": b"]q\x00" + b"](h\x00h\x00eq\x00" * 60 + b")R",
    "an object of doubling lists": b"]q\x00" + b"](h\x00h\x00eq\x00" * 60 + b")\x81",
    "a storage of doubling lists": b"]q\x00" + b"](h\x00h\x00eq\x00" * 60 + b"Q",
    "a list in itself": b"]q\x00h\x00a",
    "a dict in itself": b"}q\x00X\x01\x00\x00\x00ah\x00s",
    "a tuple in itself": b"](q\x00",
    "the memo at 2**32 - 1": b"Nr\xff\xff\xff\xff",
    "the memo below 0": b"Np-1\n",
    "the memo at a huge number": b"Np" + b"9" * 4000 + b"\n",
    "a number of 5000 digits": b"I" + b"9" * 5000 + b"\n",
    "a string of 4 GB": b"X\xff\xff\xff\xffab",
    "a string of 2**62 bytes": b"\x8d" + b"\xff" * 7 + b"\x3fab",
    "bytes of 2**62": b"\x8e" + b"\xff" * 7 + b"\x3fab",
    "a frame of 2**62": b"\x95" + b"\xff" * 7 + b"\x3fN",
    "a number of 2 GB": b"\x8b\xff\xff\xff\x7fab",
    "colliding keys": b"}("
    + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(20000))
    + b"u",
    "a dict built again and again": b"}("
    + b"".join(opcodes(str(i)) + b"N" for i in range(20000))
    + b"uq\x00"
    + b"ccollections\nOrderedDict\nh\x00\x85R0" * 100_000,
    "pairs of a dict given again and again": opcodes([["a", None]] * 20000)
    + b"q\x00"
    + b"ccollections\nOrderedDict\nh\x00\x85R0" * 50_000,
    "metadata of a tensor given again and again": opcodes({str(i): None for i in range(20000)})
    + b"q\x000N"
    + (opcodes(Ref("torch._utils._rebuild_tensor_v2")) + b"(NNNNNNh\x00tR0") * 20_000,
    "many arguments again and again": b"("
    + b"N" * 150_000
    + b"tq\x000"
    + b"ccollections\ndeque\nh\x00R0" * 20_000,
    "a long string of arguments": opcodes(Ref("torch.Size")) + opcodes("a" * 10_000_000) + b"R",
    "a set of doubling tuples": b")q\x00" + b"(h\x00h\x00tq\x00" * 60 + b"\x8f(h\x00\x90",
    "a frozenset of doubling tuples": b")q\x00" + b"(h\x00h\x00tq\x00" * 60 + b"(h\x00\x91",
    "colliding places in the memo": b"N"
    + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(20000)),
    "objects in objects": b"cm\nA\n)\x81" * 50_000 + b"b" * 49_999,
    "dicts in dicts": b"}" + b"X\x01\x00\x00\x00a}" * 50_000 + b"s" * 50_000,
    "a bytearray of 2**40": b"\x96" + (1 << 40).to_bytes(8, "little") + b"a",
    "a long name of a class": opcodes("." * 1_000_000) + b"q\x00" + b"h\x00h\x00\x93" * 1000,
    "a long key": opcodes("k" * 1_000_000) + b"q\x000" + b"}h\x00](" * 1000 + b"es" * 1000,
    "marks without end": b"(" * 200_000,
    "stack empty": b"0",
    "no mark": b"t",
    "memo empty": b"h\x00",
    "odd items": b"}(Nu",
    "items of a number": b"K\x01NNs",
    "append to a string": opcodes("a") + b"Na",
    "an object of a list": b"])\x81",
    "arguments that are no tuple": opcodes(Ref("collections.OrderedDict")) + b"]R",
    "a dict of numbers": opcodes(Call(Ref("collections.OrderedDict"), ([1, 2],))),
    "a tensor of nothing": opcodes(Call(Ref("torch._utils._rebuild_tensor_v2"))),
    "a tensor of a list": opcodes(
        Call(Ref("torch._utils._rebuild_tensor_v2"), ([], 0, (1,), (1,)))
    ),
    "a parameter of nothing": opcodes(Call(Ref("torch.nn.parameter.Parameter"))),
    "a storage of a string": opcodes(Persistent("storage")),
    "a storage of a list": opcodes(Persistent(("storage", [], "0", "cpu", 1))),
    "a storage below 0": opcodes(
        Persistent(("storage", Ref("torch.FloatStorage"), "0", "cpu", -1))
    ),
    "a storage of 10**30": opcodes(
        Persistent(("storage", Ref("torch.FloatStorage"), "0", "cpu", 10**30))
    ),
    "a quantised storage": opcodes(
        Persistent(("storage", Ref("torch.QInt8Storage"), "0", "cpu", 1))
    ),
    "an object built twice": opcodes(New(Ref("model.A"), {})) + b"}b",
    "nothing": b"",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_one_sentence(tmp_path, monkeypatch, bomb):
    monkeypatch.setattr(torch_pickle, "MOST_STEPS", 250_000)
    for data in (
        zip_file(Raw(BOMBS[bomb]), Storages()),
        old_file(Raw(BOMBS[bomb]), Storages(old=True)),
    ):
        refused(tmp_path / "model.pt", data)


def test_the_number_of_instructions_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MOST_STEPS", 1000)
    assert "1,000 steps" in refused(tmp_path / "model.pt", zip_file([None] * 1001, Storages()))


def test_keys_of_storages_that_take_long_to_compare(tmp_path):
    head = old_file(None, Storages(old=True)).removesuffix(pickled([]))
    keys = b"\x80\x02" + opcodes("a" * 4_000_000) + b"q\x00" + opcodes("a" * 4_000_000) + b"q\x01"
    data = head + keys + b"](" + b"h\x00h\x01" * 25_000 + b"e."
    assert "list of storages" in refused(tmp_path / "model.pt", data)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"\0" * 4096,
        b"PK\x03\x04",
        b"\x80",
        b"PK\x05\x06" + b"\0" * 18,
        b"<html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\0" * 257 + b"ustar" + b"\0" * 250,
        b"\xff" * 8 + b"{",
        b"\2\0\0\0\0\0\0\0{}",
    ],
)
def test_other_files_are_one_sentence(tmp_path, content):
    refused(tmp_path / "model.pt", content)


def test_the_state_of_a_tensor_changes_nothing(tmp_path):
    """What `pickle` itself would write into the tensor's attributes,
    past the checks of its claims.
    """
    storages = Storages()
    value = {name: storages.tensor(array) for name, array in weights().items()}
    state = {"shape": (1 << 20, 1 << 20), "kind": "int8", "read": None}
    value["encoder.weight"] = replace(value["encoder.weight"], state=state)
    (tmp_path / "model.pt").write_bytes(zip_file(value, storages))
    assert read_model(tmp_path / "model.pt").params["embedding"].shape == (7, 4)


def test_what_another_library_registered_is_not_reached(tmp_path):
    copyreg.add_extension("os", "system", 0x7FFF)  # pyright: ignore[reportArgumentType]
    mark = tmp_path / "mark"
    try:
        code = b"\x83\xff\x7f" + opcodes((f"touch {mark}",)) + b"R"
        assert "EXT2" in refused(tmp_path / "model.pt", zip_file(Raw(code), Storages()))
    finally:
        copyreg.remove_extension("os", "system", 0x7FFF)  # pyright: ignore[reportArgumentType]
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["/proc/kmsg", "/proc/self/mem", "/proc/self/environ", "/dev/zero", "/dev/stdin"]
)
def test_what_is_no_file_on_a_disk_is_never_waited_for(name):
    with pytest.raises(JaxlmError, match=f"cannot import '{name}': "):
        read_model(name)


def test_files_that_hang_or_are_not_there(tmp_path):

    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(JaxlmError, match="FIFO"):
        read_model(tmp_path / "fifo")
    with pytest.raises(JaxlmError, match="none"):
        read_model(tmp_path / "none")
    with pytest.raises(JaxlmError, match="checkpoint"):
        read_model(tmp_path)
    for head in (b"", b"PK\x03\x04", b"\x80\x02", b"\2\0\0\0\0\0\0\0{}"):
        with open(tmp_path / "sparse.pt", "wb") as file:
            file.write(head)
            file.truncate(1 << 40)
        start = time.process_time()
        with pytest.raises(JaxlmError, match="1,099,511,627,776 bytes"):
            read_model(tmp_path / "sparse.pt")
        assert time.process_time() - start < LONG


def valid() -> list[bytes]:
    """Small whole files of every layout."""
    files = []
    for layout, write in WRITERS.items():
        storages = Storages(old=layout == "old")
        files.append(
            write(rnn_model(weights(sizes=(2,), vocab_size=3, width=2), storages), storages)
        )

    files.append(safetensors.numpy.save(weights(sizes=(2,), vocab_size=3, width=2)))
    folder = golden("torch_import")
    return files + [path.read_bytes() for path in sorted(folder.glob("*.[ps][ta]*"))]


VALID = valid()


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path_factory, data):
    original = bytearray(data.draw(st.sampled_from(VALID), label="file"))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(original) - 1)) if original else 0
        match data.draw(st.sampled_from(["flip", "cut", "write", "drop", "double"])):
            case "flip" if original:
                original[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del original[place:]
            case "write":
                original[place : place + 4] = data.draw(st.binary(min_size=4, max_size=4))
            case "drop":
                del original[place : place + data.draw(st.integers(1, 8))]
            case "double":
                original[place:place] = original[place : place + 16]
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(original)
    start = time.process_time()
    try:
        model = read_model(path)
    except JaxlmError as error:
        assert str(error).isprintable() and len(str(error)) < 1500
    else:
        assert all(
            np.isfinite(leaf).all() for layer in model.params["layers"] for leaf in layer.values()
        )
    assert time.process_time() - start < LONG


PIECES = [
    b"",
    b"\0",
    b"\xff" * 8,
    b"\x80\x04",
    b"(",
    b"R",
    b"b",
    b"\x81",
    b"cos\nsystem\n",
    b"h\0",
    b"q\0",
    b"t",
    b"}",
    b"](",
]
PIECES += [
    b"e",
    b"u",
    b"s",
    b".",
    b"Q",
    b"2",
    b"0",
    b"X\xff\xff\xff\xff",
    b"\x8e\xff\xff\xff\x7f\0\0\0\0",
    b"{",
    b"\x8a\xff",
]


def mutated(random: Random, data: bytes) -> bytes:
    """A file of which some bytes are changed, cut out, doubled or put in."""
    content = bytearray(data)
    for _ in range(random.randint(1, 4)):
        place, length, other = (random.randrange(most) for most in (len(content), 40, len(content)))
        change = random.choice(["flip", "drop", "piece", "double", "move"])
        if change == "flip":
            content[place] ^= 1 << random.randrange(8)
        elif change == "piece":
            content[place : place + random.randrange(9)] = random.choice(PIECES)
        else:
            cut = {"drop": length, "double": 0, "move": length}[change]
            put = {"drop": 0, "double": length, "move": length}[change]
            start = place if change == "double" else other
            content[place : place + cut] = content[start : start + put]
        content = content or bytearray(b"\x80")
    return bytes(content)


def with_a_mutated_pickle(random: Random, data: bytes) -> bytes:
    """An archive with another pickle inside, whose checksums are right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as made:
        for name in archive.namelist():
            content = archive.read(name)
            made.writestr(name, mutated(random, content) if name.endswith("data.pkl") else content)
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_mutated_models_are_read_or_refused_in_one_sentence(tmp_path, seed):
    random = Random(seed)
    path = tmp_path / "model.pt"
    read = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3000):
        original = random.choice(VALID)
        zipped = original[:2] == b"PK" and random.random() < 0.7
        path.write_bytes((with_a_mutated_pickle if zipped else mutated)(random, original))
        start = time.process_time()
        try:
            read_model(path)
            read += 1
        except JaxlmError as error:
            assert str(error).isprintable() and len(str(error)) < 1500
        assert time.process_time() - start < LONG
    assert 0 < read < 2000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1 << 30
