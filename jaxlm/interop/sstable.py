"""Sorted string tables (TensorFlow's lib/io/table, after LevelDB's): keys and values in blocks with checksums.

The last 48 bytes say where the index block lies, the index where each data block does. In a block each key says how
much it shares with the one before.
"""

from collections.abc import Iterator
from itertools import islice

from jaxlm.errors import JaxlmError
from jaxlm.interop.crc32c import crc32c, masked

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")  # what a table ends with
MOST_KEY, MOST_ENTRIES = 500, 20_000  # bytes; pairs


class Cursor:
    """Reads numbers and runs of bytes, and never beyond the end."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def __bool__(self) -> bool:
        return self.place < len(self.data)

    def varint(self) -> int:
        """A number of seven bits a byte, lowest first. Raises JaxlmError for one of over 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128 and value < 1 << 64:
                return value
        raise JaxlmError("a number in it has over 64 bits; it is damaged")

    def take(self, count: int) -> bytes:
        """The next bytes. Raises JaxlmError where there are fewer."""
        if count > len(self.data) - self.place:
            raise JaxlmError("it ends in the middle of an entry; it is damaged or cut short")
        self.place += count
        return self.data[self.place - count : self.place]


def entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs of a table, in order. Raises JaxlmError where it is damaged."""
    if len(table) < 48 or table[-8:] != MAGIC:
        raise JaxlmError("it does not end as a checkpoint's index does; it is damaged or cut short")
    footer = Cursor(table[-48:-8])
    for _ in range(2):
        footer.varint()  # where the block of other blocks lies: there are none
    found = read = 0
    for _, handle in _pairs(_block(table, footer)):
        block = _block(table, Cursor(handle))
        pairs = list(islice(_pairs(block), MOST_ENTRIES))
        found, read = found + 1 + len(pairs), read + len(block)
        if found > MOST_ENTRIES or read > len(table):
            raise JaxlmError(f"it has over {MOST_ENTRIES:,} entries, more than any model, or blocks that overlap")
        yield from pairs


def _block(table: bytes, handle: Cursor) -> bytes:
    """The content of a block, its checksum checked."""
    place, size = handle.varint(), handle.varint()
    end = place + size
    if end + 5 > len(table):
        raise JaxlmError(f"a block of it ends at byte {end + 5:,} of {len(table):,}; it is cut short")
    if masked(crc32c(table[place : end + 1])) != int.from_bytes(table[end + 1 : end + 5], "little"):
        raise JaxlmError("the checksum of one of its blocks is wrong; it is damaged")
    if table[end]:
        raise JaxlmError("a block of it is compressed, as tf.train.Saver never does with an index")
    return table[place:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")  # what follows: places to restart, their number
    if len(block) < 4 or end < 0:
        raise JaxlmError("a block of it is too short; it is damaged")
    cursor, key = Cursor(block[:end]), b""
    while cursor:
        shared, fresh, length = cursor.varint(), cursor.varint(), cursor.varint()
        if shared > len(key) or shared + fresh > MOST_KEY:
            raise JaxlmError("a key of it is damaged or too long")
        key = key[:shared] + cursor.take(fresh)
        yield key, cursor.take(length)
