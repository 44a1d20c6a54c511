"""What may stand as the URL of an S3 API: scheme, host and port, and nothing that would be dropped
or that leads to a machine's own metadata service.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

#: As the API server checks it; `check` says the same in words, and more.
PATTERN: Final = r"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?$"
_METADATA = {"metadata.google.internal", "metadata", "instance-data"}
_METADATA_ADDRESSES = {
    ipaddress.ip_address("fd00:ec2::254"),
    ipaddress.ip_address("100.100.100.200"),
}


def check(given: Any) -> Any:
    """The endpoint itself. Raises ValueError (rule and remedy; the value is not repeated, it may
    hold a password).
    """
    if not isinstance(given, str):
        return given  # the type is checked by the field
    scheme, found, rest = given.partition("://")
    if not found or scheme not in ("http", "https"):
        raise ValueError("must be an http:// or https:// URL; give scheme, host and port")
    if any(not character.isprintable() or character.isspace() for character in rest):
        raise ValueError("holds spaces or control characters; remove them")
    if "@" in rest:
        raise ValueError("holds a user name or password; use credentialsDir or the AWS_* variables")
    if "?" in rest or "#" in rest:
        raise ValueError("has a query or fragment; give scheme, host and port only")
    authority = rest.removesuffix("/")
    if "/" in authority or "\\" in authority:
        raise ValueError(
            "has a path, which S3 requests cannot keep; give scheme, host and port only"
        )
    _check_authority(authority)
    return given


def _check_authority(authority: str) -> None:
    host, port = authority, ""
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        port = rest.removeprefix(":")
        if "]" not in authority or (rest and not rest.startswith(":")) or _address(host) is None:
            raise ValueError("its IPv6 address is none; write it as http://[ADDRESS]:PORT")
    elif ":" in authority:
        host, _, port = authority.partition(":")
        if not port.isdecimal():
            raise ValueError("its port is no number; give scheme, host and port")
    if not host:
        raise ValueError("has no host; give scheme, host and port")
    if port and not (port.isdecimal() and port.isascii() and 0 < int(port) < 65536):
        raise ValueError("its port is not between 1 and 65535; correct it")
    address = _address(host)
    local = address is not None and (address.is_link_local or address in _METADATA_ADDRESSES)
    if local or host.lower().rstrip(".") in _METADATA:
        raise ValueError("is a machine's metadata service or link-local; name an S3 server")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host stands for, also in the older spellings (0xa9fea9fe, 2852039166)."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


Endpoint = Annotated[
    str, Field(min_length=1, max_length=512, pattern=PATTERN), BeforeValidator(check)
]
"""A field of this kind."""
