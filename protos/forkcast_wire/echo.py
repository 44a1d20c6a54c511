"""How a value of a stranger is shown in a message: on one line, short, without its secrets."""

from __future__ import annotations

import re
from typing import Final

_MOST: Final = 60
_PASSWORD: Final = re.compile(r"(?<=://)[^/?#\s@]*@")
_SECRET: Final = re.compile(
    r"((?:password|passwd|secret|token|api_?key|access_?key|signature|credential)[\w-]*"
    r"\s*[\"']?\s*[=:]\s*[\"']?)[^\s\"'&;,]+",
    re.IGNORECASE,
)


def shown(value: object, most: int = _MOST) -> str:
    """The value's text in quotes (numbers and the like without): control characters and what is no
    text escaped, user names and passwords of URLs and values of secrets replaced, cut to ``most``
    characters.
    """
    if isinstance(value, str):
        return f"'{plain(value, most)}'"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a very deep list
        text = f"a {type(value).__name__}"
    return plain(text, most)


def plain(text: str, most: int = _MOST) -> str:
    """As `shown`, without quotes."""
    kept = text[: most * 20]  # what is cut anyway is not worth looking through
    kept = _SECRET.sub(r"\1***", _PASSWORD.sub("***@", kept))
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in kept
    )
    return escaped if len(escaped) <= most else escaped[: most - 3] + "..."
