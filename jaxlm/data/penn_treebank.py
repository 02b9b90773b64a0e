"""Penn Treebank: found in one of its usual places or downloaded, and only ever its exact bytes."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from jaxlm.data.cache import cache_dir
from jaxlm.data.download import MAX_BYTES, PTB_SHA256, download_ptb
from jaxlm.data.text import SPLITS, read_errors
from jaxlm.errors import DataError
from jaxlm.files import read_bytes

FOLDERS = (".", "ptb", "data", "simple-examples/data")  # below each of the places
NAMES = ("ptb.{}.txt", "{}.txt", "ptb.{}")


class NotFound(DataError):
    """Penn Treebank is in none of the places and cannot be downloaded."""


def find_penn_treebank(
    data_dir: str | Path | None = None, download: bool = True, progress: bool | None = None
) -> dict[str, tuple[bytes, Path]]:
    """The content and the path of Penn Treebank's three files (Mikolov's), verified by their hashes.

    Args:
        data_dir: The first place to look; then `$JAXLM_DATA`, `./data/ptb` and the user's cache.
        download: Whether to download it into the cache if it is in none of them.
        progress: Whether to show a progress bar of the download; None shows it on a terminal.

    Returns:
        {split: (content, path)}.

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
            download_ptb(cache, progress)
        except DataError as error:
            failure = str(error)
        files = _find([cache])
    if files is None:
        raise NotFound(
            f"no Penn Treebank in {', '.join(map(str, places))}, and {failure}; to have it, put "
            "ptb.train.txt, ptb.valid.txt and ptb.test.txt into a folder named by --data-dir or $JAXLM_DATA"
        )
    return files


def _find(places: Sequence[Path]) -> dict[str, tuple[bytes, Path]] | None:
    """Content and path of each split, from the first folder that has all three; None if no folder has.

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
        if len(found) == len(SPLITS):
            return {split: (_verified(path, split), path) for split, path in found.items()}
    return None


def _verified(path: Path, split: str) -> bytes:
    with read_errors(path):
        data = read_bytes(path, MAX_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != PTB_SHA256[split]:
        raise DataError(
            f"{path} is not Penn Treebank's {split} split: its sha256 is {sha256}, not {PTB_SHA256[split]}; "
            f"replace it, or give {path.parent} as the corpus if it is your own"
        )
    return data
