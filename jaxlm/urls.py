"""Passwords in URLs, as a database's `postgresql://user:password@host/name` has one: never printed, never kept."""

import re
from urllib.parse import unquote

HIDDEN = "***"
# (Up to the last @, for a password may hold one too; a third slash means that there is no user.)
_USER = re.compile(r"(://(?!/)[^:@\s]*:)(.*)(?=@)", re.DOTALL)
_QUERY = re.compile(r"([?&][^=&#\s]*(?:pass|pwd|secret|token)[^=&#\s]*=)([^&#\s]*)", re.IGNORECASE)


def without_password(url: str) -> str:
    """The URL with `***` for its password, in the user's part or the query; any other text as it is."""
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}", url))


def scrubbed(text: str, url: str) -> str:
    """A text, such as a driver's error, without the URL's password, however it is quoted."""
    text = text.replace(url, without_password(url))
    found = [match[2] for pattern in (_USER, _QUERY) for match in pattern.finditer(url)]
    for secret in sorted({*found, *map(unquote, found)} - {""}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text
