"""CRC-32C (Castagnoli; RFC 3720, appendix B.4), as TensorFlow's files keep it, over many stretches at once.

The register after data is linear in the data, so stretches of equal length are summed side by side in NumPy and then
joined: joining moves a register over a stretch's length of zeros, which is a linear map of its four bytes.
"""

from functools import cache

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reflected
_LANES = 4096  # stretches summed side by side


@cache
def _tables() -> np.ndarray:
    """uint32 [4, 256]: what a byte adds to the register after 1, 2, 3 and 4 steps."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    rows = [table]
    for _ in range(3):
        rows.append(table[rows[-1] & 255] ^ (rows[-1] >> 8))
    return np.stack(rows)


@cache
def _bytewise() -> list[int]:
    return _tables()[0].tolist()


def _step(register: np.ndarray) -> np.ndarray:
    """The registers after four more bytes, which the caller has XORed into them."""
    one, two, three, four = _tables()
    return four[register & 255] ^ three[(register >> 8) & 255] ^ two[(register >> 16) & 255] ^ one[register >> 24]


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """The checksum of bytes."""
    words = len(data) // 4
    length = words // _LANES
    register = 0xFFFFFFFF
    if length:
        lanes = np.frombuffer(data, "<u4", length * _LANES).reshape(_LANES, length)
        sums = np.zeros(_LANES, np.uint32)
        for column in np.ascontiguousarray(lanes.T) if length < _LANES else lanes.T:
            sums = _step(sums ^ column)
        # A byte's effect after a stretch of zeros, for each of the register's four bytes.
        moved = np.arange(256, dtype=np.uint32)[None] << np.array([[0], [8], [16], [24]], np.uint32)
        for _ in range(length):
            moved = _step(moved)
        places = moved.tolist()
        for lane in sums.tolist():
            register = (
                places[0][register & 255]
                ^ places[1][register >> 8 & 255]
                ^ places[2][register >> 16 & 255]
                ^ places[3][register >> 24]
                ^ lane
            )
    table = _bytewise()
    for byte in bytes(memoryview(data)[length * _LANES * 4 :]):
        register = table[(register ^ byte) & 255] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """The checksum as it is stored, changed so that data with checksums inside do not meet themselves."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
