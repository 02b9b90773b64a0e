"""Durable, atomic files, never reached over a link: everything that jaxlm keeps is written here.

A file appears under its name by one rename, after its bytes have reached the disk: a reader finds
the old bytes or the new, whatever ends the process. Below a held directory (`Folder`) no link is
followed, and only regular files are opened, so a directory that a stranger made leads nowhere else
and never hangs. The bytes that are checked are the bytes that are read: one open file, of a size
that the caller bounds. A path that the user gives for output goes through `output`.

Errors are OSError (`strerror` ends a sentence; `filename` is the whole path) and ValueError.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from jaxlm.errors import JaxlmError

_UNFINISHED = re.compile(
    r"\.partial-.+-[0-9a-f]{16}", re.DOTALL
)  # the names of unfinished files and folders
MOST_DEPTH = 8  # of the folders below a run's directory
MAX_VOCAB_BYTES = 256 << 20  # of a vocabulary, in whichever file it is
# A directory with one of these files holds a run, a sweep or a corpus, which owns the entries of
# these names.
OWNERS = {
    "run.json": "run",
    ".claim": "sweep",
    "sweep.json": "sweep",
    "prepared.json": "corpus",
    "ngram.json": "n-gram model",
}
OWNED = {".lock", "config.json", "run.json", "metrics.jsonl", "timing.jsonl", "checkpoints"} | {
    *(".claim", "study.journal", "sweep.json", "sweep.csv", "trials"),
    *(
        "prepared.json",
        "vocab.json",
        "train.ids",
        "valid.ids",
        "test.ids",
        ".partial",
        "ngram.json",
    ),
    "tables.safetensors",
}


class Folder:
    """A directory held by its descriptor: it stays the same one if its path is renamed or replaced.

    Names are those of its own entries, never paths. Use it as a context manager.
    """

    def __init__(self, descriptor: int, path: Path):
        self._descriptor = descriptor
        self.path = path

    @staticmethod
    def open(path: "str | Path | Folder", create: bool = False, follow: bool = True) -> "Folder":
        """Holds the directory at a path, which may itself be a link if `follow` is true. Raises OSError.

        With `create` it is made where it is missing, and those above it too, durably.
        """
        path = Path(path)
        if create:
            with _naming(path):
                missing = [one for one in (path, *path.parents) if not os.path.exists(one)]
                path.mkdir(parents=True, exist_ok=True)
                for made in missing:
                    with (
                        suppress(PermissionError),
                        Folder.open(made.parent) as above,
                    ):  # (one may enter, and not read)
                        above.sync()
        flags = os.O_RDONLY | os.O_DIRECTORY | (0 if follow else os.O_NOFOLLOW)
        return Folder(_open(path, path, flags, expected="a directory"), path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def names(self) -> list[str]:
        """The names of all entries, sorted."""
        with _naming(self.path):
            return sorted(os.listdir(self._descriptor))

    def exists(self, name: str) -> bool:
        """Whether there is an entry of this name, of any kind."""
        with _naming(self.path / _entry(name)), suppress(FileNotFoundError):
            os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            return True
        return False

    def folder(self, name: str, create: bool = False) -> "Folder":
        """Holds a directory of this one. Raises OSError where there is none, or a link or a file instead."""
        path = self.path / _entry(name)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        if create:
            with _naming(path), suppress(FileExistsError):
                os.mkdir(name, dir_fd=self._descriptor)
                self.sync()
        return Folder(_open(name, path, flags, self._descriptor, "a directory"), path)

    def reader(self, name: str) -> BinaryIO:
        """Opens a regular file for reading. Raises OSError where there is none, or anything else instead."""
        descriptor = _open(
            _entry(name), self.path / name, os.O_RDONLY | os.O_NOFOLLOW, self._descriptor
        )
        return open(descriptor, "rb")

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a regular file. Raises OSError where there is none, or one of more than `most` bytes."""
        with self.reader(name) as file:
            return _bounded(file, self.path / name, most)

    def append(self, name: str, buffering: int = -1) -> BinaryIO:
        """Opens a regular file, made where it is missing, for reading anywhere and writing at its end.

        Raises OSError for a link, also a hard one: what is written would appear elsewhere too.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        descriptor = _open(_entry(name), self.path / name, flags, self._descriptor)
        links = os.fstat(descriptor).st_nlink
        if links > 1:
            os.close(descriptor)
            why = f"a file with {links} names (hard links): put a copy in its place"
            raise OSError(errno.EMLINK, why, str(self.path / name))
        return open(descriptor, "ab+", buffering=buffering)

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Replaces a file at once and durably. Raises OSError; the old file is then unchanged."""
        with self.replacing(name) as file:
            file.write(data)

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        """A new file to write, which replaces `name` durably once the block ends without an exception."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with self._appearing(name) as partial:
            descriptor = _open(partial, self.path / name, flags, self._descriptor)
            with open(descriptor, "wb") as file:
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # `clean` spares it
                yield file
                with _naming(self.path / name):
                    file.flush()
                    os.fsync(descriptor)

    @contextmanager
    def new_folder(self, name: str) -> Iterator["Folder"]:
        """A directory to fill, which appears as `name`, durably, once the block ends without an exception."""
        with self._appearing(name) as partial, self._locked_folder(partial) as folder:
            yield folder
            folder.sync()

    def _locked_folder(self, name: str) -> "Folder":
        """Makes a directory and locks it, so that `clean` spares it. Raises OSError."""
        for _ in range(100):
            with suppress(FileNotFoundError):
                folder = self.folder(name, create=True)
                with suppress(OSError):
                    fcntl.flock(folder._descriptor, fcntl.LOCK_EX)
                if self.exists(name):
                    return folder
                os.close(folder._descriptor)  # `clean` of another process came before the lock
        return self.folder(name, create=True)  # raises OSError: this directory is gone

    @contextmanager
    def _appearing(self, name: str) -> Iterator[str]:
        """A name for an unfinished entry, which gets its own durably once the block ends without an exception."""
        partial = f".partial-{_entry(name)[:50]}-{secrets.token_hex(8)}"  # (a letter takes up to 4 of 255 bytes)
        try:
            yield partial
            self.rename(partial, name)
            self.sync()
        except BaseException as error:
            with suppress(OSError):
                self.remove(partial)
            if isinstance(error, OSError) and isinstance(error.filename, str):
                error.filename = error.filename.replace(partial, name)
            raise

    def rename(self, old: str, new: str) -> None:
        """Renames an entry, replacing a file (or an empty directory) of the new name; durable after `sync`."""
        with _naming(self.path / _entry(old)):
            os.rename(old, _entry(new), src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        """Removes a file, a link (never its target) or a whole tree; a missing entry is no error."""
        with _naming(self.path / _entry(name)), suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=self._descriptor)
            else:
                os.unlink(name, dir_fd=self._descriptor)

    def discard(self, name: str) -> None:
        """Removes a tree that has a reader: hides it by one rename first. What a kill leaves of it, `clean` removes."""
        self.rename(name, hidden := f".partial-{_entry(name)}-{secrets.token_hex(8)}")
        with suppress(OSError):
            self.remove(hidden)

    def clean(self, entry: str = "") -> None:
        """Removes what killed writers left unfinished, of one entry or of all; never what a living one writes."""
        prefix = f".partial-{entry[:50]}"
        for name in self.names():
            if not (name.startswith(prefix) and _UNFINISHED.fullmatch(name)):
                continue
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                descriptor = os.open(name, flags, dir_fd=self._descriptor)
            except OSError:  # a link, or removed just now
                self.remove(name)
                continue
            try:
                # Shared, since NFS has no exclusive lock of what is only read. It is kept until the
                # entry is gone, so that no writer takes the entry in between (`_locked_folder`).
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            except OSError:  # a file system without locks
                pass
            self.remove(name)
            os.close(descriptor)

    def sync(self) -> None:
        """Waits until the directory's list of names is on the disk."""
        with _naming(self.path):
            os.fsync(self._descriptor)

    def strange(self) -> list[str]:
        """`path (a link)` of each entry, at any depth, that is neither a regular file nor a directory; nor too deep."""
        found = []
        for above, folders, files, descriptor in os.fwalk(".", dir_fd=self._descriptor):
            depth = above.count("/")
            for name in sorted([*folders, *files]):
                with suppress(FileNotFoundError):  # removed in the meantime
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    if not (
                        stat.S_ISREG(status.st_mode)
                        or (stat.S_ISDIR(status.st_mode) and depth < MOST_DEPTH)
                    ):
                        found.append(f"{self.path / above / name} ({kind(status)})")
            if depth == MOST_DEPTH:
                folders.clear()
        return found


@contextmanager
def explained(error_type: type[JaxlmError], what: str, remedy: str = "") -> Iterator[None]:
    """Turns an error about files into one sentence: `what` failed, the file if `what` lacks it, why, what to do.

    An error of the given type passes unchanged. `what` is such as "RUN cannot be resumed".
    """
    try:
        yield
    except error_type:
        raise
    except (OSError, ValueError, MemoryError, RecursionError) as error:
        path = getattr(error, "filename", None)
        where = f"{path}: " if path and str(path) not in what else ""
        raise error_type(f"{what}: {where}{reason(error)}{remedy and f'; {remedy}'}") from None


def reader(path: str | Path) -> BinaryIO:
    """Opens the regular file at a path that the user gave, over links too; or a pipe that the shell opened for us.

    Such a pipe is /dev/stdin or /dev/fd/N, as in `<(command)`. Raises OSError; never waits for any
    other FIFO.
    """
    if re.fullmatch(r"/dev/(stdin|fd/[0-9]+)", str(path)):
        return open(path, "rb")
    return open(_open(path, Path(path), os.O_RDONLY), "rb")


def read_bytes(path: str | Path, most: int) -> bytes:
    """The bytes of the file or pipe at a path, as `reader` opens it. Raises OSError for more than `most`."""
    with reader(path) as file:
        return _bounded(file, Path(path), most)


@contextmanager
def output(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write at a path that the user gave for output.

    A regular file is replaced durably once the block ends without an exception, and is else
    unchanged; a link's target is replaced, and the link stays. A device, a pipe and everything in
    /dev and /proc is written to directly.

    Raises OSError where the path cannot be written, or belongs to a run, a sweep or a corpus; in
    the directory of one also where it is no regular file: a stranger may have put a link there.
    """
    path = Path(path)
    for place in (Path(os.path.abspath(path)), Path(os.path.realpath(path))):
        _check_owner(place)
    if os.path.exists(path) and (
        not path.is_file() or path.is_relative_to("/dev") or path.is_relative_to("/proc")
    ):
        with _naming(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        with open(descriptor, "wb") as file:
            yield file
    else:
        target = Path(os.path.realpath(path))
        with Folder.open(target.parent) as folder, folder.replacing(target.name) as file:
            yield file


def _check_owner(path: Path) -> None:
    """Raises OSError where a path belongs to a run, a sweep or a corpus, or leads out of the directory of one."""
    for folder in path.parents[:3]:
        owner = next((what for mark, what in OWNERS.items() if (folder / mark).is_file()), None)
        if owner:
            if path.relative_to(folder).parts[0] in OWNED:
                raise OSError(
                    errno.EEXIST,
                    f"it belongs to the {owner} in {folder}: name another file",
                    str(path),
                )
            if os.path.lexists(path) and not stat.S_ISREG((status := os.lstat(path)).st_mode):
                why = f"expected a regular file in the directory of a {owner}, found {kind(status)}"
                raise OSError(errno.EINVAL, why, str(path))
            return


@contextmanager
def vacant(path: str | Path) -> Iterator[tuple[Folder, str]]:
    """Yields the directory above a path, made where it is missing, and the path's name.

    Raises OSError where something other than an empty directory is there, or the directory above
    cannot be made.
    """
    whole = Path(os.path.abspath(path))
    if os.path.lexists(whole) and (whole.is_symlink() or not whole.is_dir() or os.listdir(whole)):
        why = "there is something of this name already: choose another name, or remove it"
        raise OSError(errno.EEXIST, why, str(path))
    with Folder.open(whole.parent, create=True) as parent:
        yield parent, whole.name


@contextmanager
def new_folder(path: str | Path) -> Iterator[Folder]:
    """A directory to fill, which appears at a vacant path once the block ends without an exception. Raises OSError."""
    with vacant(path) as (parent, name), parent.new_folder(name) as folder:
        yield folder


def reason(error: Exception) -> str:
    """An error in the words that end a sentence: without its number and its file's name."""
    text = str(getattr(error, "strerror", None) or error)
    return text or (
        "there is not enough memory" if isinstance(error, MemoryError) else type(error).__name__
    )


def kind(status: os.stat_result) -> str:
    """The kind of a directory's entry, as "a link"."""
    kinds = {
        "-": "a regular file",
        "d": "a directory",
        "l": "a link",
        "p": "a FIFO",
        "s": "a socket",
    }
    return kinds.get(
        stat.filemode(status.st_mode)[0], "a device"
    )  # by the letter that `ls -l` shows


def _open(
    name: str | Path,
    path: Path,
    flags: int,
    folder: int | None = None,
    expected: str = "a regular file",
) -> int:
    """Opens what is expected, without ever waiting for a FIFO or a device."""
    with _naming(path):
        try:
            descriptor = os.open(name, flags | os.O_NONBLOCK, 0o666, dir_fd=folder)
        except OSError as error:
            found = expected
            with suppress(OSError):
                found = kind(
                    os.stat(name, dir_fd=folder, follow_symlinks=not flags & os.O_NOFOLLOW)
                )
            if found == expected or error.errno in (errno.EACCES, errno.EPERM):
                raise
            raise OSError(error.errno, f"expected {expected}, found {found}") from None
        found = kind(os.fstat(descriptor))
        if found != expected:
            os.close(descriptor)
            raise OSError(errno.EINVAL, f"expected {expected}, found {found}")
        return descriptor


def _bounded(file: BinaryIO, path: Path, most: int) -> bytes:
    status = os.fstat(file.fileno())
    data = b""
    size = status.st_size  # bytes that a live writer adds from here on are left for the next reader
    with _naming(path):
        if stat.S_ISFIFO(status.st_mode):  # whose size is not known before it ends
            size = len(data := file.read(most + 1))
        if size > most:
            raise OSError(errno.EFBIG, f"expected at most {most:,} bytes, found {size:,}")
        return data or file.read(size)


def _entry(name: str) -> str:
    """The name, where it is one of a directory's own entries."""
    if name in ("", ".", "..") or "/" in name:
        raise ValueError(f"expected the name of an entry of a directory, found {name!r}")
    return name


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives an OSError the whole path, which a call below a held directory does not know."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
