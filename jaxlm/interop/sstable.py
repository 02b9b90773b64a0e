"""Sorted string tables (LevelDB's layout, TensorFlow's lib/io/table): keys and values in blocks with checksums.

The last 48 bytes say where the index block lies, the index where each data block does. In a block each key says how
much it shares with the one before.
"""

from collections.abc import Iterator

from jaxlm.crc32c import crc32c, masked
from jaxlm.errors import JaxlmError

MAGIC = 0xDB4775248B80FB57
MOST_KEY, MOST_BLOCK = 500, 1 << 26  # bytes; of a block: unpacked
MOST_ENTRIES = 20_000


class Cursor:
    """Reads numbers and runs of bytes, and never beyond the end."""

    def __init__(self, data: bytes | memoryview, place: int = 0, end: int | None = None):
        self.data, self.place, self.end = data, place, len(data) if end is None else end

    def __bool__(self) -> bool:
        return self.place < self.end

    def varint(self) -> int:
        """A number of seven bits a byte, lowest first. Raises JaxlmError for one of over 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                if value >> 64:
                    break
                return value
        raise JaxlmError("a number in it has over 64 bits; it is damaged")

    def take(self, count: int) -> bytes:
        """The next bytes. Raises JaxlmError where there are fewer."""
        if count > self.end - self.place:
            raise JaxlmError("it ends in the middle of an entry; it is damaged or cut short")
        self.place += count
        return bytes(self.data[self.place - count : self.place])


def entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs of a table, in order. Raises JaxlmError where it is damaged."""
    if len(table) < 48 or int.from_bytes(table[-8:], "little") != MAGIC:
        raise JaxlmError("it does not end as a checkpoint's index does; it is damaged or cut short")
    footer = Cursor(table, len(table) - 48, len(table) - 8)
    for _ in range(2):
        footer.varint()  # where the block of other blocks lies: there are none
    unpacked = found = 0
    for _, handle in _block_entries(_block(table, footer)):
        block = _block(table, Cursor(handle))
        unpacked += len(block)
        if unpacked > MOST_BLOCK:
            raise JaxlmError(f"it unpacks to over {MOST_BLOCK:,} bytes, more than any model's index")
        for entry in _block_entries(block):
            found += 1
            if found > MOST_ENTRIES:
                raise JaxlmError(f"it has over {MOST_ENTRIES:,} entries, more than any model")
            yield entry


def _block(table: bytes, handle: Cursor) -> bytes:
    """A block's content, its checksum checked and unpacked."""
    place, size = handle.varint(), handle.varint()
    if place + size + 5 > len(table):
        raise JaxlmError(f"a block of it ends at byte {place + size + 5:,} of {len(table):,}; it is cut short")
    content, kind = table[place : place + size], table[place + size]
    checksum = int.from_bytes(table[place + size + 1 : place + size + 5], "little")
    if masked(crc32c(table[place : place + size + 1])) != checksum:
        raise JaxlmError("the checksum of one of its blocks is wrong; it is damaged")
    if kind not in (0, 1):
        raise JaxlmError(f"a block of it is packed in the unknown way {kind}")
    return unsnappy(content) if kind else content


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little") if len(block) >= 4 else 0
    end = len(block) - 4 - 4 * restarts
    if len(block) < 4 or end < 0:
        raise JaxlmError("a block of it is too short; it is damaged")
    cursor, key = Cursor(block, 0, end), b""
    while cursor:
        shared, fresh, length = cursor.varint(), cursor.varint(), cursor.varint()
        if shared > len(key) or shared + fresh > MOST_KEY:
            raise JaxlmError("a key of it is damaged or too long")
        key = key[:shared] + cursor.take(fresh)
        yield key, cursor.take(length)


def unsnappy(data: bytes) -> bytes:
    """Unpacks Snappy's raw format: literals, and copies of what came before. Raises JaxlmError where it is damaged."""
    cursor, out = Cursor(data), bytearray()
    size = cursor.varint()
    if size > MOST_BLOCK:
        raise JaxlmError(f"a block of it unpacks to {size:,} bytes, more than any index has")
    while cursor:
        tag = cursor.take(1)[0]
        if tag & 3 == 0:
            length = tag >> 2
            if length > 59:
                length = int.from_bytes(cursor.take(length - 59), "little")
            out += cursor.take(length + 1)
        else:
            if tag & 3 == 1:
                length, back = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | cursor.take(1)[0]
            else:
                length, back = (tag >> 2) + 1, int.from_bytes(cursor.take(2 if tag & 3 == 2 else 4), "little")
            if not 0 < back <= len(out):
                raise JaxlmError("a packed block copies from before its beginning; it is damaged")
            piece = bytes(out[len(out) - back : len(out) - back + length])
            out += (piece * (length // len(piece) + 1))[:length]  # a copy may run into itself
        if len(out) > size:
            break
    if len(out) != size:
        raise JaxlmError(f"a packed block unpacks to {len(out):,} bytes, expected {size:,}; it is damaged")
    return bytes(out)
