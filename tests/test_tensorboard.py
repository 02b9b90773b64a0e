"""TensorBoard's event files, read by a decoder of the test's own and by protobuf's."""

import resource
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import INTRUDERS, intrude, opened

from jaxlm.crc32c import crc32c
from jaxlm.files import Folder
from jaxlm.report.metrics import read_metrics
from jaxlm.report.tensorboard import TensorBoard, record, scalars_event, start_event, version_event

NAN = float("nan")
FLOATS = st.floats(allow_nan=False)


@pytest.mark.parametrize(
    "data, crc",
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_checksums_of_rfc_3720(data, crc):
    assert crc32c(data) == crc


@given(st.binary(max_size=200))
def test_a_record_is_length_data_and_their_masked_checksums(data):
    framed = record(data)
    assert list(records(framed)) == [data]
    assert len(framed) == len(data) + 16


def records(stream: bytes) -> Iterator[bytes]:
    """The data of each record, checksums verified bit by bit."""

    def crc(data: bytes) -> int:
        register = 0xFFFFFFFF
        for bit in np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").tolist():
            register = register >> 1 ^ (0x82F63B78 if (register ^ bit) & 1 else 0)
        register ^= 0xFFFFFFFF
        return ((register >> 15 | register << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32

    while stream:
        (size,) = struct.unpack_from("<Q", stream)
        data = stream[12 : 12 + size]
        assert len(stream) >= size + 16
        assert struct.unpack_from("<I", stream, 8)[0] == crc(stream[:8])
        assert struct.unpack_from("<I", stream, 12 + size)[0] == crc(data)
        yield data
        stream = stream[size + 16 :]


def fields(message: bytes) -> list[tuple[int, Any]]:
    """(field, value) of a protobuf message: integers, and bytes for all else."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = message[at], at + 1
            value, shift = value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            found.append((key >> 3, varint()))
            continue
        size = {1: 8, 5: 4}.get(key & 7) or (varint() if key & 7 == 2 else pytest.fail(f"wire type {key & 7}"))
        found.append((key >> 3, message[at : at + size]))
        at += size
    assert at == len(message)
    return found


def decoded(message: bytes) -> dict[str, Any]:
    """An Event by the names of event.proto and summary.proto."""
    event = dict(fields(message))
    found: dict[str, Any] = {"wall_time": struct.unpack("<d", event.pop(1))[0], "step": event.pop(2)}
    if 3 in event:
        found["file_version"] = event.pop(3).decode()
    if 5 in event:
        values = [dict(fields(value)) for field, value in fields(event.pop(5)) if field == 1]
        found["scalars"] = {value[1].decode(): struct.unpack("<f", value[2])[0] for value in values}
    if 7 in event:
        found["status"] = dict(fields(event.pop(7)))[1]
    assert not event
    return found


def events(folder: Path) -> list[dict[str, Any]]:
    return [decoded(data) for path in sorted(folder.iterdir()) for data in records(path.read_bytes())]


@given(st.floats(0, 1e10), st.integers(0, 2**63 - 1), st.dictionaries(st.text(st.characters(codec="utf-8")), FLOATS))
def test_every_event_reads_the_same_with_protobuf(wall_time, step, values):
    protos = pytest.importorskip("tensorboardX.proto.event_pb2")
    with np.errstate(over="ignore"):
        singles = {tag: float(np.float32(value)) for tag, value in values.items()}
    message = scalars_event(wall_time, step, values)
    event = protos.Event.FromString(message)
    assert (event.wall_time, event.step) == (wall_time, step)
    assert {value.tag: value.simple_value for value in event.summary.value} == singles
    assert decoded(message) == {"wall_time": wall_time, "step": step, "scalars": singles}
    start = protos.Event.FromString(start_event(wall_time, step))
    assert (start.step, start.session_log.status) == (step, protos.SessionLog.START)
    assert protos.Event.FromString(version_event(wall_time)).file_version == "brain.Event:2"


def test_tensorboards_own_reader_accepts_a_run(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with opened(tmp_path, tensorboard=True) as log:
        log.windows(1, 1, [1, 2], [3, 4], [0.5, 0.5])
    read = loader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("train/cost")] == [(1, 1), (2, 2)]


def test_every_window_and_result_is_logged_at_its_step(tmp_path):
    with opened(tmp_path, tensorboard=True) as log:
        log.windows(1, 1, [1, 2], [3, NAN], [0.5, 0.5])
        log.result("epoch", epoch=1, valid_perplexity=123.0, train_perplexity=1e300, checkpoint="last")
        offset = log.sync()
    with opened(tmp_path, offset=offset, tensorboard=True) as log:
        log.windows(3, 2, [4], [4], [0.5])
    seen = events(tmp_path / "tensorboard")
    assert all("tfevents" in path.name for path in (tmp_path / "tensorboard").iterdir())
    scalars = {(event["step"], tag): value for event in seen for tag, value in event.get("scalars", {}).items()}
    assert np.isnan(scalars.pop((2, "train/grad_norm")))
    assert scalars == {
        (1, "train/cost"): 1,
        (1, "train/grad_norm"): 3,
        (1, "train/learning_rate"): 0.5,
        (2, "train/cost"): 2,
        (2, "train/learning_rate"): 0.5,
        (2, "epoch/valid_perplexity"): 123,
        (2, "epoch/train_perplexity"): float("inf"),
        (3, "train/cost"): 4,
        (3, "train/grad_norm"): 4,
        (3, "train/learning_rate"): 0.5,
    }
    assert [event["step"] for event in seen if event.get("status") == 1] == [1, 3]
    assert [event["file_version"] for event in seen if "file_version" in event] == ["brain.Event:2"] * 2


@pytest.mark.parametrize("intruder", ["file", *INTRUDERS[:2]])
def test_a_folder_in_whose_place_is_something_else_costs_a_warning_and_nothing_else(tmp_path, intruder):
    (tmp_path / "run").mkdir()
    if intruder == "file":
        (tmp_path / "run/tensorboard").write_text("")
    else:
        intrude(tmp_path / "run/tensorboard", intruder)
    with (
        pytest.warns(RuntimeWarning, match="TensorBoard.*expected a directory"),
        opened(tmp_path / "run", tensorboard=True) as log,
    ):
        log.windows(1, 1, [1, 2], [1, 2], [1, 2])
    assert len(read_metrics(tmp_path / "run")) == 2


def test_a_full_disk_ends_the_log_with_one_warning(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Folder.open(tmp_path) as folder:
        board = TensorBoard(folder, 1)
        (path,) = (tmp_path / "tensorboard").iterdir()
        whole = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))
        try:
            with pytest.warns(RuntimeWarning, match="TensorBoard.*File too large"):
                board.scalars([(1, {"cost": 1.0})])
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                board.scalars([(2, {"cost": 1.0})])
                board.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes().startswith(whole)
