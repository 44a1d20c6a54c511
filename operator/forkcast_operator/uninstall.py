"""`python -m forkcast_operator.uninstall`: what must happen before an operator goes for good.

Runs are suspended (a checkpoint first) while the operator can still do it, then the operator is
stopped so that it takes nothing back, then what pods are left go, and last the finalizers that
nobody would be there to take away. The runs themselves stay: a later installation goes on with
them where `suspend` is set to false. Runs in a pod, with the pod's own account.
"""

from __future__ import annotations

from forkcast_wire import termination

if __name__ == "__main__":
    termination.end_at_once()  # every step of it may be done again

# isort: split

import argparse
import datetime as dt
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from forkcast_operator.kubernetes.scope import SELECTOR, Scope, rival
from forkcast_wire.fields import API_VERSION
from forkcast_wire.process import configure_logging
from forkcast_wire.resources import FINALIZER, LABEL_RUN, RunCondition

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MERGE: Final = "application/merge-patch+json"
_WORKLOADS: Final = (("batch/v1", "jobs"), ("jobset.x-k8s.io/v1alpha2", "jobsets"))
_REQUEST_SECONDS, _PAUSE_SECONDS, _STOP_SECONDS = 10.0, 1.0, 60.0
_FORBIDDEN, _GONE, _CONFLICT, _PAGE = 403, 404, 409, 500
_log = structlog.get_logger()


class ApiError(RuntimeError):
    """The API server refused or did not answer; status 0 where it did not."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status or 'no answer'}: {message}")
        self.status = status


class Api:
    """The API server, as the account whose token and authority stand in a folder."""

    def __init__(self, url: str, account: Path) -> None:
        self._url, self._account = url, account
        self._tls = ssl.create_default_context(cafile=str(account / "ca.crt"))

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """The answer as JSON. Raises ApiError."""
        request = urllib.request.Request(  # noqa: S310  the URL is https, see `main`
            f"{self._url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {(self._account / 'token').read_text().strip()}",
                "Content-Type": kind,
                "Accept": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(  # noqa: S310
                request, timeout=_REQUEST_SECONDS, context=self._tls
            ) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, error.read().decode(errors="replace")[:500]) from None
        except (urllib.error.URLError, OSError) as error:
            raise ApiError(0, str(error)) from None

    def items(
        self, version: str, plural: str, namespaces: Sequence[str], selector: str = ""
    ) -> Iterator[dict[str, Any]]:
        """All objects of a kind in the namespaces (none named: in all), page by page; none where
        the kind is not served. Raises ApiError.
        """
        for base in [_path(version, plural, one) for one in namespaces or ("",)]:
            following = ""
            while True:
                query = {"limit": _PAGE, "labelSelector": selector, "continue": following}
                try:
                    page = self.call("GET", f"{base}?{urllib.parse.urlencode(query)}")
                except ApiError as error:
                    if error.status == _GONE:
                        break
                    raise
                yield from page["items"]
                following = page["metadata"].get("continue", "")
                if not following:
                    break


def _path(version: str, plural: str, namespace: str = "", name: str = "") -> str:
    root = "apis" if "/" in version else "api"
    place = f"namespaces/{namespace}/" if namespace else ""
    return f"/{root}/{version}/{place}{plural}" + (f"/{name}" if name else "")


def _run_path(run: dict[str, Any]) -> str:
    meta = run["metadata"]
    return _path(API_VERSION, "trainingruns", meta["namespace"], meta["name"])


def _name(run: dict[str, Any]) -> str:
    return f"{run['metadata']['namespace']}/{run['metadata']['name']}"


def _holds(run: dict[str, Any], condition: RunCondition) -> bool:
    conditions = run.get("status", {}).get("conditions", [])
    return any(one["type"] == condition and one["status"] == "True" for one in conditions)


def settled(run: dict[str, Any]) -> bool:
    """Whether nothing of the run works any more: it has ended, or is suspended as its spec says."""
    suspended = run["spec"].get("suspend") and _holds(run, RunCondition.SUSPENDED)
    return bool(suspended) or _holds(run, RunCondition.FINISHED)


def _runs(api: Api, namespaces: Sequence[str], managed_by: str) -> list[dict[str, Any]]:
    """The runs of this release. Raises ApiError."""
    found = api.items(API_VERSION, "trainingruns", namespaces)
    return [run for run in found if run["spec"].get("managedBy", "") == managed_by]


def rival_of(api: Api, namespaces: Sequence[str], managed_by: str, operator: str) -> str:
    """The Lease of another release that looks after the same runs, "" if there is none, or if leases
    may not be listed. Raises ApiError.
    """
    namespace, _, name = operator.partition("/")
    try:
        leases = list(api.items("coordination.k8s.io/v1", "leases", (), SELECTOR))
    except ApiError as error:
        if error.status != _FORBIDDEN:
            raise
        return ""
    scope = Scope(managed_by, tuple(sorted(namespaces)))
    return rival(scope, (namespace, name), leases, dt.datetime.now(dt.UTC))


def suspend(api: Api, namespaces: Sequence[str], seconds: float, managed_by: str = "") -> None:
    """Suspend every run that has not ended; wait for the operator to carry it out. Raises ApiError."""
    deadline = time.monotonic() + seconds
    while True:
        waiting = [run for run in _runs(api, namespaces, managed_by) if not settled(run)]
        for run in waiting:
            if not run["spec"].get("suspend"):
                _ignoring_gone(api, "PATCH", _run_path(run), {"spec": {"suspend": True}}, _MERGE)
        if not waiting:
            return
        if time.monotonic() > deadline:
            _log.warning("uninstall.not_suspended", runs=[_name(run) for run in waiting])
            return
        time.sleep(_PAUSE_SECONDS)


def stop_operator(api: Api, namespace: str, name: str) -> None:
    """Scale the operator to zero and wait until its pods are gone. Raises ApiError.

    The pods themselves: the Deployment's count leaves out a pod that is ending, which still works
    and would put a finalizer back.
    """
    path = _path("apps/v1", "deployments", namespace, name) + "/scale"
    scale = _ignoring_gone(api, "PATCH", path, {"spec": {"replicas": 0}}, _MERGE)
    if scale is None:
        return
    selector = scale["status"]["selector"]
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        if not any(api.items("v1", "pods", (namespace,), selector)):
            return
        time.sleep(_PAUSE_SECONDS)
    _log.warning("uninstall.operator_still_runs", deployment=f"{namespace}/{name}")


def delete_workloads(api: Api, namespaces: Sequence[str], managed_by: str = "") -> None:
    """Delete the runs' Jobs and JobSets; their pods go with them. Raises ApiError."""
    runs = [run["metadata"] for run in _runs(api, namespaces, managed_by)]
    ours = {(meta["namespace"], meta["name"]) for meta in runs}
    for version, plural in _WORKLOADS:
        for one in api.items(version, plural, namespaces, LABEL_RUN):
            meta = one["metadata"]
            if (meta["namespace"], meta["labels"][LABEL_RUN]) not in ours:
                continue
            path = _path(version, plural, meta["namespace"], meta["name"])
            _ignoring_gone(api, "DELETE", path, {"propagationPolicy": "Background"})


def _held(run: dict[str, Any]) -> bool:
    return FINALIZER in run["metadata"].get("finalizers", [])


def drop_finalizers(api: Api, namespaces: Sequence[str], managed_by: str = "") -> None:
    """Take our finalizer off every run; others' stay. A run that somebody changes meanwhile is read
    again. Raises ApiError.
    """
    deadline = time.monotonic() + _STOP_SECONDS
    while held := [run for run in _runs(api, namespaces, managed_by) if _held(run)]:
        if time.monotonic() > deadline:
            _log.warning("uninstall.finalizers_left", runs=[_name(run) for run in held])
            return
        for run in held:
            rest = [one for one in run["metadata"]["finalizers"] if one != FINALIZER]
            meta = {"finalizers": rest, "resourceVersion": run["metadata"]["resourceVersion"]}
            _ignoring_gone(api, "PATCH", _run_path(run), {"metadata": meta}, _MERGE)


def _ignoring_gone(
    api: Api, method: str, path: str, body: Any = None, kind: str = "application/json"
) -> Any:
    """The answer; None if the object is gone, or was changed meanwhile (the next pass sees it)."""
    try:
        return api.call(method, path, body, kind)
    except ApiError as error:
        if error.status not in (_GONE, _CONFLICT):
            raise
        return None


def uninstall(
    api: Api, namespaces: Sequence[str], operator: str, seconds: float, managed_by: str = ""
) -> None:
    """All of it, in order. operator: NAMESPACE/DEPLOYMENT, which also names its Lease. Runs that
    another release's operator looks after are left alone. Raises ApiError.
    """
    namespace, _, name = operator.partition("/")
    if other := rival_of(api, namespaces, managed_by, operator):
        _log.warning("uninstall.runs_left", lease=other)
        stop_operator(api, namespace, name)
        return
    suspend(api, namespaces, seconds, managed_by)
    stop_operator(api, namespace, name)
    delete_workloads(api, namespaces, managed_by)
    drop_finalizers(api, namespaces, managed_by)


def main() -> int:
    """0: nothing is left that needs an operator. 1: the API server refused; try again."""
    parser = argparse.ArgumentParser(prog="forkcast_operator.uninstall", description=__doc__)
    parser.add_argument("--namespace", action="append", default=[], help="of runs; none: all")
    parser.add_argument("--operator", required=True, metavar="NAMESPACE/DEPLOYMENT")
    parser.add_argument("--managed-by", default="", help="of the runs: spec.managedBy")
    parser.add_argument("--seconds", type=float, default=120.0, help="wait for runs to suspend")
    parser.add_argument("--account", type=Path, default=_ACCOUNT, help="folder of token and ca.crt")
    given = parser.parse_args()
    configure_logging("uninstall")
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    try:
        api = Api(f"https://{host}:{port}", given.account)
        uninstall(api, given.namespace, given.operator, given.seconds, given.managed_by)
    except (ApiError, OSError) as error:
        _log.error("uninstall.failed", error=str(error))
        return 1
    _log.info("uninstall.done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
