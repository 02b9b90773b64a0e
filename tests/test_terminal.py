"""Text from files: no control character reaches the terminal, everything else does."""

import io
import os
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.base.terminal import printable, say, scrubbed

UNSAFE = "\x1b\x00\n\r\t\x7f\x9b\u2028\u2029\u202e\u2066\u2069\ud800\udcff"
ANY_TEXT = st.text(st.characters() | st.sampled_from(UNSAFE))
FORBIDDEN = {*map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFFFE, 0xFFFF))}


def is_safe(text: str) -> bool:
    return not any(
        unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in FORBIDDEN
        for letter in text
    )


@given(ANY_TEXT)
def test_no_control_character_comes_through(text):
    shown = printable(text)
    assert is_safe(shown)
    assert is_safe(printable(text, keep_newlines=True).replace("\n", ""))
    assert printable(shown) == shown


@given(ANY_TEXT)
def test_safe_text_stays_as_it_is(text):
    if is_safe(text):
        assert printable(text) == text


@given(ANY_TEXT, st.sampled_from(["ascii", "latin-1", "utf-8", "cp1252", "koi8-r"]))
def test_every_encoding_can_print_it(text, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    say(text, file=out, flush=True)
    assert (
        out.buffer.getvalue().decode(encoding)
        == printable(text, keep_newlines=True, encoding=encoding) + "\n"
    )


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b2J", r"\x9b2J"),
        ("a\r\n", r"a\r\n"),
        ("\u202e", r"\u202e"),
        ("\udcff", r"\udcff"),
        ("\uffff", r"\uffff"),
        ("\x00\x7f\t", r"\x00\x7f\t"),
        ("漢字 naïve é \\x1b", "漢字 naïve é \\x1b"),
        ("👩‍🔬 می‌خواهم", "👩‍🔬 می‌خواهم"),
    ],
)
def test_escapes(text, shown):
    assert printable(text) == shown


def test_a_process_of_a_narrow_encoding_prints_a_file_name_that_is_not_utf8(tmp_path):
    code = (
        "import sys; from jaxlm.base.terminal import say; "
        "say(sys.argv[1]); say('one\\ntwo', end='')"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, b"\xff\x1b[31m\xd1\x82"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
    )
    assert out.stdout == rb"\udcff\x1b[31m\u0442" + b"\none\ntwo"


def test_without_a_standard_output_nothing_happens():
    code = "import sys; from jaxlm.base.terminal import say; assert sys.stdout is None; say('x')"
    subprocess.run(f"'{sys.executable}' -c \"{code}\" >&-", shell=True, check=True)


@pytest.mark.parametrize(
    ("path", "shown_by"),
    [("/dev/stdout", "stderr"), ("out", "stderr"), ("other", "out"), ("missing", "out")],
)
def test_a_note_about_an_output_never_goes_into_it(tmp_path, path, shown_by):
    """`-o /dev/stdout > out` begins to write at the start of the file."""
    code = f"""
import sys
from jaxlm.base.files import output
from jaxlm.base.terminal import say_written
with output("/dev/stdout") as file:
    file.write(b"0123456789")
say_written({path!r}, "written")
"""
    (tmp_path / "other").touch()
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, stdout=out, stderr=subprocess.PIPE
        )
    assert (done.stderr == b"written\n") == (shown_by == "stderr")
    if shown_by == "stderr":
        assert (tmp_path / "out").read_bytes() == b"0123456789"


def test_a_drivers_error_shows_no_password_however_it_is_quoted():
    url = "postgresql://me:p%40ss@host/db?sslpassword=other"
    error = f"cannot log in to {url} as me with 'p@ss' (p%40ss), or 'other'"
    shown = "cannot log in to postgresql://me:***@host/db?sslpassword=*** as me with '***' (***)"
    assert scrubbed(error, url) == f"{shown}, or '***'"
