"""The watches, kept by kopf, used level-based: an event updates the view and asks for a look.

No handler decides anything and none keeps state on an object: no annotations, no progress. What an
event missed, the next list or look finds.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import aiohttp
import kopf
from kubernetes.aio.client import Configuration

from forkcast_operator.kubernetes import metrics
from forkcast_operator.kubernetes.cluster import BRANCH, JOB, JOBSET, POD, RUN, Kind
from forkcast_operator.kubernetes.view import View
from forkcast_wire.resources import LABEL_RUN

#: The server ends a watch after this; it is begun again where it left.
_SERVER_SECONDS: Final = 15
#: Without any event, bookmark or end for so long a watch is taken for dead and begun again. With
#: the time to connect it has to stay below 30 s.
_SILENT_SECONDS: Final = 20.0
_CONNECT_SECONDS: Final = 5.0
_REQUEST_SECONDS: Final = 20.0
_PREFIX: Final = "forkcast.dev"
_MANAGED: Final = "app.kubernetes.io/managed-by=forkcast-operator"

PLURALS: Final[dict[Kind, tuple[str, str, str]]] = {
    RUN: ("forkcast.dev", "v1alpha1", "trainingruns"),
    BRANCH: ("forkcast.dev", "v1alpha1", "branches"),
    JOB: ("batch", "v1", "jobs"),
    JOBSET: ("jobset.x-k8s.io", "v1alpha2", "jobsets"),
    POD: ("", "v1", "pods"),
}
Wake = Callable[[tuple[str, str]], None]


class Pulse:
    """When each watch last showed life, on the monotonic clock."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        now = time.monotonic()
        self._seen = {PLURALS[kind][2]: now for kind in kinds}
        self._unlisted = set(self._seen)

    def beat(self, plural: str, *, watching: bool = True) -> None:
        """The watch of this kind is alive. watching: what there was before is in the view."""
        if plural in self._seen:
            self._seen[plural] = time.monotonic()
            if watching:
                self._unlisted.discard(plural)

    @property
    def filled(self) -> bool:
        """Whether every kind has been listed since the start."""
        return not self._unlisted

    def age(self) -> float:
        """Seconds since the quietest watch showed life."""
        return time.monotonic() - min(self._seen.values())

    def age_of(self, kind: Kind) -> float:
        """The same, of one kind."""
        return time.monotonic() - self._seen[PLURALS[kind][2]]


def settings() -> kopf.OperatorSettings:
    """How kopf watches for us: short requests, own names, no events of its own."""
    given = kopf.OperatorSettings()
    given.watching.server_timeout = _SERVER_SECONDS
    given.watching.inactivity_timeout = _SILENT_SECONDS
    given.watching.connect_timeout = _CONNECT_SECONDS
    given.networking.connect_timeout = _CONNECT_SECONDS
    given.networking.request_timeout = _REQUEST_SECONDS
    given.networking.error_backoffs = (0.5, 1, 2, 4, 8)
    given.scanning.disabled = True
    given.posting.enabled = False
    # kopf takes its own finalizer away where no handler of it asks for one: it must not be ours
    given.persistence.finalizer = f"{_PREFIX}/kopf"
    given.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=_PREFIX)
    given.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=_PREFIX)
    for kind in (JOB, POD, JOBSET):
        given.watching.label_selectors[PLURALS[kind]] = _MANAGED
    return given


def registry(
    kinds: Iterable[Kind], view: View, wake: Wake, pulse: Pulse, config: Configuration
) -> kopf.OperatorRegistry:
    """The handlers: every event of every kind goes into the view, and its run is looked at."""
    made = kopf.OperatorRegistry()

    @kopf.on.login(registry=made)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=config.host, aiohttp_session=session(config, pulse))

    for kind in kinds:
        _listen(made, kind, view, wake, pulse)
    return made


def _listen(made: kopf.OperatorRegistry, kind: Kind, view: View, wake: Wake, pulse: Pulse) -> None:
    group, version, plural = PLURALS[kind]

    @kopf.on.event(group, version, plural, registry=made, id=plural)
    async def seen(event: Any, **_: Any) -> None:
        body = event["object"]
        pulse.beat(plural, watching=False)
        meta = body["metadata"]
        body.setdefault("apiVersion", kind[0])
        body.setdefault("kind", kind[1])
        if event["type"] == "DELETED":
            view.drop(kind[1], (meta["namespace"], meta["name"]), meta["uid"])
        elif not view.put(kind[1], body):
            return
        name = meta["name"] if kind == RUN else meta.get("labels", {}).get(LABEL_RUN)
        if name:
            wake((meta["namespace"], name))


def session(config: Configuration, pulse: Pulse) -> aiohttp.ClientSession:
    """A session of kopf's: the credentials are read anew for each request, and each answer to a
    watch is a sign of life.
    """
    context = ssl.create_default_context(cafile=config.ssl_ca_cert, cadata=config.ca_cert_data)
    if not config.verify_ssl:  # a kubeconfig that says so
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if config.cert_file:
        context.load_cert_chain(config.cert_file, config.key_file)

    async def signed(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if token := await _token(config):
            request.headers["Authorization"] = token
        response = await handler(request)
        verb = "watch" if request.url.query.get("watch") else "list"
        if response.status < 400:
            pulse.beat(request.url.path.rpartition("/")[2], watching=verb == "watch")
        metrics.API_REQUESTS.labels(verb, metrics.code_of(response.status)).inc()
        return response

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=context), middlewares=(signed,)
    )


async def _token(config: Configuration) -> str | None:
    """`Bearer ...`; in a pod it is rotated, and read anew by the configuration's own hook."""
    found = await config.get_api_key_with_prefix("BearerToken", alias="authorization")
    return str(found) if found else None
