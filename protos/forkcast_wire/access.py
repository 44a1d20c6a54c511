"""Who calls: established once a call, before any handler sees it.

A Unix socket's folder is its guard, so its callers are not asked. Over TCP a caller shows a
certificate of our authority, or a service account's token that the cluster vouches for.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog

from forkcast_wire.reviews import CrowdedError, Reviews
from forkcast_wire.token_review import Reviewed, Reviewer, ReviewUnavailableError, plausible

_log = structlog.get_logger()
#: Why a caller is refused: by the guard, and by a handler that finds what is asked not the caller's.
REASONS = (
    "missing",
    "invalid",
    "not_an_account",
    "review_failed",
    "crowded",
    "undecodable",
    "foreign_namespace",
    "operator_only",
)
_MOST_TOKEN_BYTES = 16 << 10
_CACHED_SECONDS, _REFUSED_SECONDS, _MOST_CACHED = 60.0, 5.0, 4096
#: spiffe://<trust domain>/ns/<namespace>/sa/<service account>
_SPIFFE = re.compile(r"spiffe://([^/]+)/ns/([a-z0-9-]+)/sa/([a-z0-9.-]+)")
#: What an operator may be called: a service account, or a certificate's common name.
OPERATOR = re.compile(r"[a-z0-9-]+/[a-z0-9.-]+|cn:.+")


@dataclass(frozen=True, slots=True)
class Caller:
    """namespace, account: of a service account; a certificate that names none has an empty
    namespace and the account ``cn:<common name>``. operator: may do everything.
    """

    namespace: str
    account: str
    operator: bool = False

    def may_see(self, namespace: str) -> bool:
        """Whether what belongs to a namespace is the caller's business."""
        return self.operator or (bool(self.namespace) and self.namespace == namespace)


#: Of the call that is being served; None if callers are not asked who they are.
CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


class RefusedError(Exception):
    """The call is refused. reason: of REASONS, for the counter."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


class Admission(Protocol):
    """Establishes who calls."""

    async def __call__(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """Raises RefusedError."""


def caller(namespace: str, account: str, operators: frozenset[str]) -> Caller:
    """A caller; ``operators`` are named as OPERATOR says."""
    name = f"{namespace}/{account}" if namespace else account
    return Caller(namespace, account, operator=name in operators)


class ByCertificate:
    """TLS has verified the certificate. Its SPIFFE id says whose it is, and counts in our trust
    domain alone: an authority may sign for several. A certificate without one is known by its
    common name, which can never be an account's.
    """

    def __init__(self, operators: frozenset[str], trust_domain: str) -> None:
        self._operators, self._trust_domain = operators, trust_domain

    async def __call__(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """See Admission."""
        found = context.auth_context()
        uris = [*found.get("peer_spiffe_id", ()), *found.get("peer_uri", ())]
        ids = [uri.decode(errors="replace") for uri in uris if uri.startswith(b"spiffe://")]
        for one in ids:
            match = _SPIFFE.fullmatch(one)
            if match and match[1] == self._trust_domain:
                return caller(match[2], match[3], self._operators)
        if ids:
            raise RefusedError(
                grpc.StatusCode.UNAUTHENTICATED,
                "invalid",
                f"the certificate's SPIFFE id is no service account of {self._trust_domain}",
            )
        names = found.get("x509_common_name", ())
        if not names:
            raise RefusedError(
                grpc.StatusCode.UNAUTHENTICATED, "missing", "the certificate names nobody"
            )
        return caller("", f"cn:{next(iter(names)).decode(errors='replace')}", self._operators)


class ByToken:
    """The bearer token of the metadata, judged by a reviewer whose answers count for a minute.
    What cannot be a token for ``audience`` is refused without a review; see Reviews for the rest.
    """

    def __init__(
        self,
        reviewer: Reviewer,
        operators: frozenset[str],
        audience: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._operators, self._audience, self._clock = operators, audience, clock
        self.reviews = Reviews(reviewer, self._remember)
        self._good: OrderedDict[bytes, tuple[float, Reviewed]] = OrderedDict()
        self._bad: OrderedDict[bytes, tuple[float, Reviewed]] = OrderedDict()

    async def __call__(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """See Admission."""
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        scheme, _, token = str(given).partition(" ")
        if scheme != "Bearer" or not token or len(token) > _MOST_TOKEN_BYTES:
            raise RefusedError(
                grpc.StatusCode.UNAUTHENTICATED, "missing", "a bearer token is needed"
            )
        reviewed = self._known(key := hashlib.sha256(token.encode()).digest())
        if reviewed is None and not plausible(token, self._audience, time.time()):
            reviewed = Reviewed(authenticated=False)
        if reviewed is None:
            reviewed = await self._review(key, token, peer_address(context.peer()))
        if not reviewed.authenticated:
            # the API's own words may quote the token's content; they go into no reply
            raise RefusedError(
                grpc.StatusCode.UNAUTHENTICATED, "invalid", "the token is not valid here"
            )
        if not reviewed.account:
            raise RefusedError(
                grpc.StatusCode.PERMISSION_DENIED, "not_an_account", "not a service account's token"
            )
        return caller(reviewed.namespace, reviewed.account, self._operators)

    async def _review(self, key: bytes, token: str, peer: str) -> Reviewed:
        """Raises RefusedError."""
        try:
            return await self.reviews.ask(key, token, peer, known=key in self._good)
        except ReviewUnavailableError as error:
            _log.warning("access.review_failed", reason=str(error))
            raise RefusedError(
                grpc.StatusCode.UNAVAILABLE, "review_failed", "the token could not be reviewed"
            ) from None
        except CrowdedError:
            raise RefusedError(
                grpc.StatusCode.UNAVAILABLE, "crowded", "too many tokens wait for their review"
            ) from None

    def _known(self, key: bytes) -> Reviewed | None:
        for cache in (self._good, self._bad):
            found = cache.get(key)
            if found is not None and self._clock() < found[0]:
                cache.move_to_end(key)
                return found[1]
        return None

    def _remember(self, key: bytes, reviewed: Reviewed) -> None:
        """Two caches: invented tokens never push out good ones."""
        self._good.pop(key, None)
        self._bad.pop(key, None)
        cache = self._good if reviewed.authenticated else self._bad
        seconds = _CACHED_SECONDS if reviewed.authenticated else _REFUSED_SECONDS
        cache[key] = (self._clock() + seconds, reviewed)
        while len(cache) > _MOST_CACHED:
            cache.popitem(last=False)


def peer_address(peer: str) -> str:
    """The address of gRPC's peer without its port; '' for a Unix socket."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""
