"""How something that a stranger wrote is shown in a message: on one line, short, without secrets."""

from __future__ import annotations

import re
from typing import Final

_SHORT: Final = 60
_LINE: Final = 600
_USER: Final = re.compile(r"(:/{1,3})[^\s'\"]*@")
_SECRET: Final = re.compile(
    r"((?:password|passwd|secret|token|api_?key|access_?key|signature|credential)[\w-]*"
    r"\s*[\"']?\s*[=:]\s*[\"']?)[^\s\"'&;,]+",
    re.IGNORECASE,
)


def shown(value: object) -> str:
    """A value, at most 60 characters of it: texts in quotes, with what looks like a password or a
    token replaced; of lists and mappings no more than that they are some.
    """
    if isinstance(value, str):
        kept = _SECRET.sub(r"\1***", value[: 20 * _SHORT])
        return f"'{one_line(kept, _SHORT)}'"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    try:
        return one_line(str(value), _SHORT)
    except ValueError:  # an integer of thousands of digits
        return f"a very long {type(value).__name__}"


def one_line(text: str, most: int = _LINE) -> str:
    """A text of which parts may come from outside: control characters, line breaks and what is no
    character at all escaped, users and passwords of URLs replaced, at most ``most`` characters.
    """
    kept = _USER.sub(r"\1***@", text[: 20 * most])  # what is cut anyway is not looked through
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in kept
    )
    return escaped if len(escaped) <= most else escaped[: most - 3] + "..."


def first_line(error: BaseException) -> str:
    """What an error says: its first line that says something, or else its kind."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
