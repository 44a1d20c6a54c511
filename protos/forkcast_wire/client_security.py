"""What a client trusts and shows: an authority, and a certificate, a token, or both."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

#: The environment variables; each of the first four names a file.
CA, CERTIFICATE, KEY = "FORKCAST_TLS_CA", "FORKCAST_TLS_CERT", "FORKCAST_TLS_KEY"
TOKEN, INSECURE = "FORKCAST_TOKEN_FILE", "FORKCAST_INSECURE_DEV"


#: How gRPC words why it does not take a server's certificate.
_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED: *([A-Za-z][A-Za-z -]*[A-Za-z])")


class InsecureRefusedError(ValueError):
    """A plain-text address that is not a Unix socket, without the explicit flag, or credentials
    that cannot be used.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSecurity:
    """ca, certificate, key: PEM files. token: a file with a service account's token, which goes
    with every call. insecure_dev: plain text on TCP, with nothing of the others.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    insecure_dev: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ClientSecurity:
        """FORKCAST_TLS_CA, FORKCAST_TLS_CERT, FORKCAST_TLS_KEY and FORKCAST_TOKEN_FILE name files;
        FORKCAST_INSECURE_DEV=1 is the explicit flag.
        """

        def path(name: str) -> Path | None:
            return Path(environment[name]) if environment.get(name) else None

        return cls(
            ca=path(CA),
            certificate=path(CERTIFICATE),
            key=path(KEY),
            token=path(TOKEN),
            insecure_dev=environment.get(INSECURE, "") == "1",
        )

    @classmethod
    def from_folder(cls, folder: Path) -> ClientSecurity:
        """Mutual TLS by ca.crt, tls.crt and tls.key of a folder."""
        return cls(ca=folder / "ca.crt", certificate=folder / "tls.crt", key=folder / "tls.key")

    def credentials(self, target: str) -> grpc.ChannelCredentials | None:
        """For a channel to ``target``; None for plain text. Raises InsecureRefusedError."""
        if self.ca is None:
            given = [path for path in (self.certificate, self.key, self.token) if path is not None]
            if given:
                raise InsecureRefusedError(
                    f"{target}: {given[0]} is shown to a trusted server only; name its authority "
                    f"in {CA}"
                )
            if not self.insecure_dev and not target.startswith("unix:"):
                raise InsecureRefusedError(
                    f"{target}: plain text is refused; give a folder with ca.crt, tls.crt and "
                    f"tls.key, name the files in {CA}, {CERTIFICATE}, {KEY} or {TOKEN}, or say "
                    f"--insecure-dev ({INSECURE}=1)"
                )
            return None
        if (self.certificate is None) != (self.key is None):
            raise InsecureRefusedError(f"{target}: {CERTIFICATE} and {KEY} go together")
        channel = grpc.ssl_channel_credentials(
            _read(target, self.ca), _read(target, self.key), _read(target, self.certificate)
        )
        if self.token is None:
            return channel
        call = grpc.metadata_call_credentials(_TokenFile(self.token), name="service-account-token")
        return grpc.composite_channel_credentials(channel, call)

    def fingerprint(self) -> str:
        """Of the certificate files as they are now. Where it changes, a long-lived client opens a
        new channel: an open one keeps what it was opened with. Tokens do not count, see above.
        """
        digest = hashlib.sha256()
        for path in (self.ca, self.certificate, self.key):
            try:
                digest.update(b"" if path is None else path.read_bytes())
            except OSError:
                digest.update(b"missing")
            digest.update(b"\0")
        return digest.hexdigest()


def handshake_trouble(details: str) -> str:
    """Why the server's certificate is not taken, by a call's status details, e.g. "certificate has
    expired"; "" if they tell of something else.
    """
    found = _UNTRUSTED.search(details)
    return found[1] if found else ""


def _read(target: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InsecureRefusedError(f"{target}: {path}: {error.strerror}") from error


class _TokenFile(grpc.AuthMetadataPlugin):  # type: ignore[misc]  # grpc is untyped
    """The token as the file holds it at the time of the call: the kubelet replaces it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(
        self, _context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback
    ) -> None:
        try:
            token = self._path.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            callback((), error)
            return
        callback((("authorization", f"Bearer {token}"),), None)
