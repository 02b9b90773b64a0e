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
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from jaxlm.base.errors import JaxlmError, reason

# The names of unfinished files and folders.
_UNFINISHED = re.compile(r"\.partial-.+-[0-9a-f]{16}", re.DOTALL)
MOST_DEPTH = 8  # of the folders below a run's directory
# A directory with one of these files holds a run, a sweep or a corpus, which owns the entries of
# these names.
OWNERS = {
    "run.json": "run",
    ".claim": "sweep",
    "sweep.json": "sweep",
    "prepared.json": "corpus",
    "ngram.json": "n-gram model",
}
OWNED = {
    # a run's
    ".lock",
    "config.json",
    "run.json",
    "metrics.jsonl",
    "timing.jsonl",
    "checkpoints",
    # a sweep's
    ".claim",
    "study.journal",
    "sweep.json",
    "sweep.csv",
    "trials",
    # a corpus's
    "prepared.json",
    "vocab.json",
    "train.ids",
    "valid.ids",
    "test.ids",
    ".partial",
    # an n-gram model's
    "ngram.json",
    "tables.safetensors",
}
_ENTRY_KINDS = {  # by the first letter that `ls -l` shows
    "-": "a regular file",
    "d": "a directory",
    "l": "a link",
    "p": "a FIFO",
    "s": "a socket",
}


class Folder:
    """A directory held by its descriptor: it stays the same one if its path is renamed or replaced.

    Use it as a context manager. Names are those of its own entries, never paths: another name is a
    ValueError.

    Attributes:
        path: Where the directory was when it was opened, for messages.
    """

    def __init__(self, descriptor: int, path: Path):
        self._descriptor = descriptor
        self.path = path

    @staticmethod
    def open(
        path: "str | Path | Folder",
        create: bool = False,
        follow: bool = True,
    ) -> "Folder":
        """Holds the directory at a path.

        Args:
            path: The path.
            create: Make the directory durably where it is missing, and those above it too.
            follow: Whether the path itself may be a link.

        Returns:
            The directory, open until the end of its `with` block.

        Raises:
            OSError: There is none, or it cannot be opened or made.
        """
        path = Path(path)
        if create:
            with _with_path(path):
                missing = [part for part in (path, *path.parents) if not os.path.exists(part)]
                path.mkdir(parents=True, exist_ok=True)
                for made in missing:
                    # The user may be allowed to enter the directory above, but not to read it.
                    with suppress(PermissionError), Folder.open(made.parent) as above:
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
        with _with_path(self.path):
            return sorted(os.listdir(self._descriptor))

    def exists(self, name: str) -> bool:
        """Whether there is an entry of this name, of any kind."""
        with _with_path(self.path / _own_entry(name)), suppress(FileNotFoundError):
            os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            return True
        return False

    def folder(self, name: str, create: bool = False) -> "Folder":
        """Holds a directory of this one.

        Args:
            name: Its name.
            create: Make it durably where it is missing.

        Returns:
            The directory.

        Raises:
            OSError: There is none, or a link or a file in its place.
        """
        path = self.path / _own_entry(name)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        if create:
            with _with_path(path), suppress(FileExistsError):
                os.mkdir(name, dir_fd=self._descriptor)
                self.sync()
        return Folder(_open(name, path, flags, self._descriptor, "a directory"), path)

    def reader(self, name: str) -> BufferedReader:
        """Opens a regular file for reading. Raises OSError where there is none, or another kind."""
        path = self.path / _own_entry(name)
        return open(_open(name, path, os.O_RDONLY | os.O_NOFOLLOW, self._descriptor), "rb")

    def read(self, name: str, most: int) -> bytes:
        """Reads a regular file.

        Args:
            name: Its name.
            most: How many bytes it may have.

        Returns:
            Its bytes.

        Raises:
            OSError: There is none, or it has more bytes.
        """
        with self.reader(name) as file:
            return _read_at_most(file, self.path / name, most)

    def append(self, name: str, buffering: int = -1) -> BinaryIO:
        """Opens a regular file, made where it is missing, to read anywhere and to write at its end.

        Args:
            name: Its name.
            buffering: As for Python's `open`.

        Returns:
            The file.

        Raises:
            OSError: It is a link, or has several names (hard links): what is written would appear
                elsewhere too.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        descriptor = _open(_own_entry(name), self.path / name, flags, self._descriptor)
        links = os.fstat(descriptor).st_nlink
        if links > 1:
            os.close(descriptor)
            reason = f"a file with {links} names (hard links): put a copy in its place"
            raise OSError(errno.EMLINK, reason, str(self.path / name))
        return open(descriptor, "ab+", buffering=buffering)

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Replaces a file at once and durably.

        Args:
            name: Its name; it need not exist.
            data: Its new bytes.

        Raises:
            OSError: It cannot be written; the old file is unchanged.
        """
        with self.replacing(name) as file:
            file.write(data)

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        """Yields a new file, which replaces `name` durably if the block ends without an error."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        partial = _unfinished_name(name)
        with self._appearing(partial, name):
            descriptor = _open(partial, self.path / name, flags, self._descriptor)
            with open(descriptor, "wb") as file:
                with suppress(OSError):  # `clean` spares what is locked.
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield file
                with _with_path(self.path / name):
                    file.flush()
                    os.fsync(descriptor)

    @contextmanager
    def new_folder(self, name: str) -> Iterator["Folder"]:
        """Yields a new folder, which appears as `name` if the block ends without an error."""
        with self._unfinished_folder(name) as folder, self._appearing(folder.path.name, name):
            yield folder
            folder.sync()

    def _unfinished_folder(self, name: str) -> "Folder":
        """Makes a directory for `new_folder`, locked so that `clean` spares it. Raises OSError."""
        with _with_path(self.path / name):
            for _ in range(100):
                # Never one name twice: another's `clean` may be about to remove what it saw.
                partial = _unfinished_name(name)
                try:
                    os.mkdir(partial, dir_fd=self._descriptor)
                    folder = self.folder(partial)
                    with suppress(OSError):
                        fcntl.flock(folder._descriptor, fcntl.LOCK_EX)
                    if self.exists(partial):
                        return folder
                    os.close(folder._descriptor)
                except FileNotFoundError:
                    continue
                except BaseException:
                    with suppress(OSError):
                        self.remove(partial)
                    raise
            # This directory itself is gone.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    @contextmanager
    def _appearing(self, partial: str, name: str) -> Iterator[None]:
        """Gives an unfinished entry its name if the block ends well; else removes it."""
        try:
            yield
            self.rename(partial, name)
            self.sync()
        except BaseException as error:
            with suppress(OSError):
                self.remove(partial)
            if isinstance(error, OSError) and isinstance(error.filename, str):
                error.filename = error.filename.replace(partial, name)
            raise

    def rename(self, old: str, new: str) -> None:
        """Renames an entry; durable after `sync`.

        Args:
            old: Its name.
            new: The new name. A file of that name is replaced, and so is an empty directory.

        Raises:
            OSError: There is no such entry, or it cannot be renamed.
        """
        with _with_path(self.path / _own_entry(old)):
            os.rename(
                old, _own_entry(new), src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor
            )

    def remove(self, name: str) -> None:
        """Removes a file, a link (never its target) or a whole tree, if there is one."""
        with _with_path(self.path / _own_entry(name)), suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=self._descriptor)
            else:
                os.unlink(name, dir_fd=self._descriptor)

    def discard(self, name: str) -> None:
        """Removes a tree that may have a reader: the tree loses its name at once, then its files.

        `clean` removes what a kill leaves of it.
        """
        unfinished = _unfinished_name(name)
        self.rename(name, unfinished)
        with suppress(OSError):
            self.remove(unfinished)

    def clean(self, entry: str = "") -> None:
        """Removes the unfinished entries of killed writers, and none that a living writer fills.

        Args:
            entry: Only what was to become this entry; all by default.
        """
        prefix = f".partial-{entry[:50]}"
        for name in self.names():
            if not (name.startswith(prefix) and _UNFINISHED.fullmatch(name)):
                continue
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                descriptor = os.open(name, flags, dir_fd=self._descriptor)
            except OSError:  # It is a link, or was removed just now.
                self.remove(name)
                continue
            try:
                # Shared, since NFS has no exclusive lock of what is only read. It is kept until the
                # entry is gone: a writer that waits for it then sees that (`_unfinished_folder`).
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            except OSError:  # The file system has no locks.
                pass
            self.remove(name)
            os.close(descriptor)

    def sync(self) -> None:
        """Waits until the directory's list of names is on the disk."""
        with _with_path(self.path):
            os.fsync(self._descriptor)

    def irregular_entries(self) -> list[str]:
        """The entries, at any depth, that are neither regular files nor folders, or lie too deep.

        Returns:
            Each as `path (a link)`.
        """
        irregular = []
        for above, folders, files, descriptor in os.fwalk(".", dir_fd=self._descriptor):
            depth = above.count("/")
            for name in sorted([*folders, *files]):
                with suppress(FileNotFoundError):  # It was removed in the meantime.
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        continue
                    if not stat.S_ISDIR(status.st_mode) or depth >= MOST_DEPTH:
                        irregular.append(f"{self.path / above / name} ({entry_kind(status)})")
            if depth == MOST_DEPTH:
                folders.clear()
        return irregular


@contextmanager
def explained(
    error_type: type[JaxlmError],
    failure: str,
    remedy: str = "",
) -> Iterator[None]:
    """Turns an error about files into one sentence: what failed, the file, why, and what to do.

    Args:
        error_type: The type of the error that is raised; an error that has it already passes.
        failure: What failed, such as "RUN cannot be resumed"; the file's name is added if it is not
            in these words.
        remedy: What to do.

    Raises:
        JaxlmError: The block raised an error about files, memory or a text that cannot be parsed.
    """
    try:
        yield
    except error_type:
        raise
    except (OSError, ValueError, MemoryError, RecursionError) as error:
        path = getattr(error, "filename", None)
        sentence = failure
        if path and str(path) not in failure:
            sentence += f": {path}"
        sentence += f": {reason(error)}"
        if remedy:
            sentence += f"; {remedy}"
        raise error_type(sentence) from None


def reader(path: str | Path) -> BinaryIO:
    """Opens the regular file at a path that the user gave, also over links, or the shell's pipe.

    A pipe of the shell's is /dev/stdin or /dev/fd/N, as in `<(command)`. No other FIFO is waited
    for. Raises OSError.
    """
    if re.fullmatch(r"/dev/(stdin|fd/[0-9]+)", str(path)):
        return open(path, "rb")
    return open(_open(path, Path(path), os.O_RDONLY), "rb")


def read_bytes(path: str | Path, most: int) -> bytes:
    """Reads the file or pipe at a path, as `reader` opens it.

    Args:
        path: The path.
        most: How many bytes it may have.

    Returns:
        Its bytes.

    Raises:
        OSError: It cannot be read, or has more bytes.
    """
    with reader(path) as file:
        return _read_at_most(file, Path(path), most)


@contextmanager
def output(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a file to write, at a path that the user gave for output.

    A regular file is replaced durably if the block ends without an exception, and is else
    unchanged; a link's target is replaced, and the link stays. A device, a pipe and everything in
    /dev and /proc is written to directly.

    Args:
        path: The path.

    Yields:
        The file.

    Raises:
        OSError: The path cannot be written, or belongs to a run, a sweep or a corpus. In the
            directory of one, the path is no regular file: a stranger may have put a link there.
    """
    path = Path(path)
    _check_owner(Path(os.path.abspath(path)))
    _check_owner(Path(os.path.realpath(path)))
    is_special = path.is_relative_to("/dev") or path.is_relative_to("/proc")
    if os.path.exists(path) and (is_special or not path.is_file()):
        with _with_path(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        with open(descriptor, "wb") as file:
            yield file
    else:
        target = Path(os.path.realpath(path))
        with Folder.open(target.parent) as folder, folder.replacing(target.name) as file:
            yield file


@contextmanager
def vacant(path: str | Path) -> Iterator[tuple[Folder, str]]:
    """Checks that nothing is at a path, except an empty directory, and holds the directory above.

    Args:
        path: The path.

    Yields:
        The directory above, made where it is missing, and the path's name.

    Raises:
        OSError: Something is there, or the directory above cannot be made.
    """
    whole = Path(os.path.abspath(path))
    if os.path.lexists(whole) and (whole.is_symlink() or not whole.is_dir() or os.listdir(whole)):
        reason = "there is something of this name already: choose another name, or remove it"
        raise OSError(errno.EEXIST, reason, str(path))
    with Folder.open(whole.parent, create=True) as parent:
        yield parent, whole.name


@contextmanager
def new_folder(path: str | Path) -> Iterator[Folder]:
    """Yields a directory to fill; it appears at a vacant path if the block ends without an error.

    Args:
        path: The path.

    Yields:
        The directory.

    Raises:
        OSError: Something is there, or the directory cannot be made.
    """
    with vacant(path) as (parent, name), parent.new_folder(name) as folder:
        yield folder


def entry_kind(status: os.stat_result) -> str:
    """What an entry of a directory is, such as "a link"."""
    return _ENTRY_KINDS.get(stat.filemode(status.st_mode)[0], "a device")


def _check_owner(path: Path) -> None:
    """Raises OSError where a path belongs to a run, sweep or corpus, or is a link in its folder."""
    for folder in path.parents[:3]:
        owners = [owner for mark, owner in OWNERS.items() if (folder / mark).is_file()]
        if not owners:
            continue
        if path.relative_to(folder).parts[0] in OWNED:
            reason = f"it belongs to the {owners[0]} in {folder}: name another file"
            raise OSError(errno.EEXIST, reason, str(path))
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            reason = (
                f"expected a regular file in the directory of a {owners[0]}, "
                f"found {entry_kind(os.lstat(path))}"
            )
            raise OSError(errno.EINVAL, reason, str(path))
        return


def _open(
    name: str | Path,
    path: Path,
    flags: int,
    folder: int | None = None,
    expected: str = "a regular file",
) -> int:
    """Opens an entry of the kind `expected`, without ever waiting for a FIFO or a device.

    Args:
        name: The entry, within `folder`.
        path: Its whole path, for errors.
        flags: As `os.open` takes them.
        folder: The descriptor of a directory; None: the working directory.
        expected: The kind of entry.

    Returns:
        A descriptor.
    """
    with _with_path(path):
        try:
            descriptor = os.open(name, flags | os.O_NONBLOCK, 0o666, dir_fd=folder)
        except OSError as error:
            actual = expected
            with suppress(OSError):
                follow = not flags & os.O_NOFOLLOW
                actual = entry_kind(os.stat(name, dir_fd=folder, follow_symlinks=follow))
            if actual == expected or error.errno in (errno.EACCES, errno.EPERM):
                raise
            raise OSError(error.errno, f"expected {expected}, found {actual}") from None
        actual = entry_kind(os.fstat(descriptor))
        if actual != expected:
            os.close(descriptor)
            raise OSError(errno.EINVAL, f"expected {expected}, found {actual}")
        return descriptor


def _read_at_most(
    file: BinaryIO,
    path: Path,
    most: int,
) -> bytes:
    """The bytes of an open file or pipe. Raises OSError where there are more than `most`.

    Bytes that another process adds in the meantime are not read.
    """
    status = os.fstat(file.fileno())
    with _with_path(path):
        if stat.S_ISFIFO(status.st_mode):  # a pipe's size is not known before its end
            data = file.read(most + 1)
            size = len(data)
        else:
            size = status.st_size
            data = file.read(size) if size <= most else b""
        if size > most:
            raise OSError(errno.EFBIG, f"expected at most {most:,} bytes, found {size:,}")
        return data


def _own_entry(name: str) -> str:
    """The name. Raises ValueError for a path, which may lead out of the directory."""
    if name in ("", ".", "..") or "/" in name:
        raise ValueError(f"expected the name of an entry of a directory, found {name!r}")
    return name


def _unfinished_name(name: str) -> str:
    """A name for an entry that is not whole yet, or no longer whole."""
    # A letter takes up to 4 of the 255 bytes that a name may have.
    return f".partial-{_own_entry(name)[:50]}-{secrets.token_hex(8)}"


@contextmanager
def _with_path(path: Path) -> Iterator[None]:
    """Raises an OSError of the block again, with the whole path.

    A call that is given a directory's descriptor and a name does not know the path.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
