"""CRC-32C (Castagnoli; RFC 3720, appendix B.4), with which TensorFlow's checkpoints are checked.

The register after data is linear in the data. So stretches of equal length are summed side by side in NumPy, and then
joined: each join moves the register over a stretch of zeros, which is a linear map of the register's four bytes.
"""

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reflected
_LANES = 1 << 14  # stretches summed side by side
_TABLE = np.arange(256, dtype=np.uint32)  # what a byte adds to the register
for _ in range(8):
    _TABLE = np.where(_TABLE & 1, (_TABLE >> 1) ^ np.uint32(_POLYNOMIAL), _TABLE >> 1)


def crc32c(data: bytes | bytearray) -> int:
    """The checksum of bytes."""
    length = len(data) // _LANES
    sums = np.zeros(_LANES, np.uint32)
    moved = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    for column in np.frombuffer(data, np.uint8, length * _LANES).reshape(_LANES, length).T:
        sums = _TABLE[(sums ^ column) & 255] ^ (sums >> 8)
        moved = _TABLE[moved & 255] ^ (moved >> 8)
    register, places, table = 0xFFFFFFFF, moved.tolist(), _TABLE.tolist()
    for lane in sums.tolist() if length else ():
        parts = (places[place][register >> 8 * place & 255] for place in range(4))
        for part in parts:
            lane ^= part
        register = lane
    for byte in data[length * _LANES :]:
        register = table[(register ^ byte) & 255] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """The checksum as TensorFlow stores it, changed so that data that hold checksums do not cancel them."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
