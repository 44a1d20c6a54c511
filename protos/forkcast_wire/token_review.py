"""Whose token it is, asked of the Kubernetes API by its TokenReview, over plain HTTPS."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
_MOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_SECONDS = 5.0
_MOST_BYTES = 1 << 20
_JWT_PARTS = 3
#: The clocks of a cluster may differ by so much before a token that expired is refused unasked.
_CLOCK_SECONDS = 600.0
_ACCOUNT_PREFIX = "system:serviceaccount:"


class ReviewUnavailableError(RuntimeError):
    """Nobody could say whose token it is; another try may."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """namespace, account: of the service account, both empty for any other kind of user.
    authenticated: whether the token is valid now and for the audience; reason: why not.
    """

    authenticated: bool
    namespace: str = ""
    account: str = ""
    reason: str = ""


class Reviewer(Protocol):
    """Says whose token it is."""

    def __call__(self, token: str) -> Reviewed:
        """Blocks. Raises ReviewUnavailableError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiReviewer:
    """url: of the API server, https. ca, token: files that are read for every review, so that a
    rotation counts at once. audience: that a token must be meant for.
    """

    url: str
    ca: Path
    token: Path
    audience: str

    @classmethod
    def in_cluster(cls, audience: str) -> ApiReviewer:
        """By the mounted service account. Raises ValueError outside of a pod."""
        host, port = (
            os.environ.get("KUBERNETES_SERVICE_HOST"),
            os.environ.get("KUBERNETES_SERVICE_PORT", "443"),
        )
        if not host:
            raise ValueError(
                "--auth token: KUBERNETES_SERVICE_HOST is not set; outside of a cluster give "
                "--review-url, --review-ca and --review-token"
            )
        bracketed = f"[{host}]" if ":" in host else host
        return cls(
            url=f"https://{bracketed}:{port}",
            ca=_MOUNT / "ca.crt",
            token=_MOUNT / "token",
            audience=audience,
        )

    def __call__(self, token: str) -> Reviewed:
        """See Reviewer."""
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self.audience]},
        }
        try:
            status, body = self._post(json.dumps(asked).encode())
        except (OSError, http.client.HTTPException) as error:
            raise ReviewUnavailableError(f"{self.url}: {type(error).__name__}: {error}") from error
        if status not in (http.client.OK, http.client.CREATED):
            raise ReviewUnavailableError(f"{self.url}: TokenReview answered with {status}")
        try:
            return self._judge(json.loads(body)["status"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReviewUnavailableError(f"{self.url}: no TokenReview in the answer") from error

    def _post(self, body: bytes) -> tuple[int, bytes]:
        where = urlsplit(self.url)
        connection = http.client.HTTPSConnection(
            where.hostname or "",
            where.port,
            timeout=_TIMEOUT_SECONDS,
            context=ssl.create_default_context(cafile=str(self.ca)),
        )
        headers = {
            "Authorization": f"Bearer {self.token.read_text(encoding='ascii').strip()}",
            "Content-Type": "application/json",
        }
        try:
            connection.request("POST", _PATH, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_MOST_BYTES)
        finally:
            connection.close()

    def _judge(self, status: dict[str, Any]) -> Reviewed:
        """A server that does not know audiences leaves them out: then the token is not taken."""
        if status.get("authenticated") is not True:
            return Reviewed(authenticated=False, reason=str(status.get("error", "not valid")))
        audiences = status.get("audiences")
        if not isinstance(audiences, list) or self.audience not in audiences:
            return Reviewed(authenticated=False, reason="not meant for this audience")
        user = str(status["user"]["username"])
        namespace, _, account = user.removeprefix(_ACCOUNT_PREFIX).partition(":")
        if not (user.startswith(_ACCOUNT_PREFIX) and namespace and account) or ":" in account:
            return Reviewed(authenticated=True)
        return Reviewed(authenticated=True, namespace=namespace, account=account)


def plausible(token: str, audience: str, now: float) -> bool:
    """Whether the API server could take it for a service account's token for ``audience``: it has
    the form of a JWT, names the audience and has not long expired. Costs nothing, proves nothing;
    what is not plausible needs no review. now: seconds since the epoch.
    """
    parts = token.split(".")
    if len(parts) != _JWT_PARTS:
        return False
    try:
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        claims = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        named = claims["aud"]
        meant = audience in ([named] if isinstance(named, str) else named)
        return meant and float(claims["exp"]) > now - _CLOCK_SECONDS
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False
