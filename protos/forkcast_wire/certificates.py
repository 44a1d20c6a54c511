"""When certificates expire: read from the PEM files in use, served as a gauge, told in the log."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import structlog
from prometheus_client import Gauge

#: What a certificate is called: the label values of the gauge, the file's name last.
Name: TypeAlias = tuple[str, ...]
Role: TypeAlias = Literal["server", "client"]
#: From here on its end is told.
WARN_SECONDS: Final = 14 * 86_400.0
#: So often at most.
_REPEAT_SECONDS: Final = 86_400.0
#: So often it is looked whether something is to be told.
_CHECK_SECONDS: Final = 3600.0
#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which `ssl` has no name.
_NO_CHECK_TIME: Final = 0x200000
#: Turns of each side, more than any handshake takes.
_TURNS: Final = 8

_log = structlog.get_logger()


def expiries_of(
    ca: Path | None, certificate: Path | None, key: Path | None, role: Role
) -> dict[Name, float]:
    """Unix seconds at which the certificates expire, by file: a chain with the first of it, several
    authorities with the last. role: whose the key is. A certificate that `ssl` cannot show is left
    out and logged.
    """
    found: dict[Name, float] = {}
    for file in (ca, certificate):
        if file is None:
            continue
        try:
            if file is ca:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_verify_locations(file)
                found[(file.name,)] = max(_ends(context.get_ca_certs()))
            elif key is not None:
                found[(file.name,)] = min(_ends(_chain(file, key, role)))
        except (OSError, ValueError) as error:
            _log.warning("certificate.expiry_unknown", file=str(file), reason=str(error))
    return found


def _chain(certificate: Path, key: Path, role: Role) -> list[Mapping[str, Any]]:
    """The certificate as the other side of a handshake in memory sees it, for `ssl` decodes that of
    no authority only as a peer's; behind it the authorities of its chain.

    Raises OSError (ssl.SSLError is one).
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for side in (server, client):
        side.load_cert_chain(certificate, key)
    asking = client if role == "server" else server
    asking.verify_mode = ssl.CERT_REQUIRED
    asking.load_verify_locations(certificate)
    asking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = {
        server: server.wrap_bio(to_server, to_client, server_side=True),
        client: client.wrap_bio(to_client, to_server),
    }
    for _ in range(_TURNS):
        for end in ends.values():
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    peer = ends[asking].getpeercert()
    return [*([peer] if peer else []), *asking.get_ca_certs()]


def _ends(decoded: Iterable[Mapping[str, Any]]) -> list[float]:
    ends = [float(ssl.cert_time_to_seconds(one["notAfter"])) for one in decoded]
    if not ends:
        raise ValueError("holds no certificate that can be shown")
    return ends


class Expiries:
    """Thread-safe. The certificates that a process uses: ``gauge`` has their expiry, Unix seconds,
    and the log names each that expires within 14 days or has expired, at most once a day.
    """

    def __init__(self, gauge: Gauge, clock: Callable[[], float] = time.time) -> None:
        self._gauge, self._clock = gauge, clock
        self._times: dict[Name, float] = {}
        self._told: dict[tuple[Name, float, bool], float] = {}

    def use(self, times: Mapping[Name, float]) -> None:
        """These are in use from now on, instead of those of the same names."""
        self._times = {**self._times, **times}
        for name, expires in times.items():
            self._gauge.labels(*name).set(expires)
        self.tell()

    def expired(self) -> list[Name]:
        """Those that have expired."""
        now = self._clock()
        return [name for name, expires in self._times.items() if expires <= now]

    def tell(self) -> None:
        """Log what is due."""
        now = self._clock()
        for name, expires in self._times.items():
            if expires - now > WARN_SECONDS:
                continue
            over = expires <= now
            key = (name, expires, over)
            if now - self._told.get(key, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
                continue
            self._told[key] = now
            facts = {
                "certificate": "/".join(name),
                "not_after": dt.datetime.fromtimestamp(expires, dt.UTC).isoformat(),
            }
            if over:
                _log.error("certificate.expired", remedy="renew it", **facts)
            else:
                left = int((expires - now) // 86_400)
                _log.warning("certificate.expires", days_left=left, remedy="renew it", **facts)

    async def tell_for_ever(self) -> None:
        """Log what is due, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            self.tell()
