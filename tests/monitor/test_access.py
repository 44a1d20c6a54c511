"""Who may do what over TCP: real TLS, and tokens that a real HTTPS server or a real cluster reviews."""

import asyncio
import base64
import json
import ssl
import subprocess
import threading
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
import yaml

from forkcast_wire import access
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.client_security import ClientSecurity
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.token_review import Reviewed, ReviewUnavailableError
from tests.certificates import Authority
from tests.ports import free_port
from tests.waiting import HANG_SECONDS, until

from .conftest import Process, Talker, registration, statistics

AUDIENCE = "forkcast-monitor"
OPERATOR = ("forkcast-system", "forkcast-operator")


def token_of(name, audience=AUDIENCE, expires=1 << 40):
    """What looks like a service account's token, and is known to the reviews by ``name``."""

    def part(claims):
        return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")

    return f"{part({'alg': 'RS256'})}.{part({'aud': [audience], 'exp': expires})}.{name}"


class TokenReviews(ThreadingHTTPServer):
    """The API server's TokenReview: knows tokens, whose they are, for which audience."""

    daemon_threads = True

    def __init__(self, certificate):
        super().__init__(("127.0.0.1", 0), self.Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.tokens, self.asked, self.down = {}, Counter(), False
        self.gate = threading.Event()  # no review ends while it is not set
        self.gate.set()
        self.url = f"https://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/apis/authentication.k8s.io/v1/tokenreviews"
            assert self.headers["Authorization"] == "Bearer the-monitors-own"
            spec = body["spec"]
            name = spec["token"].rpartition(".")[2]
            self.server.asked[name] += 1
            self.server.gate.wait(HANG_SECONDS)
            status = {"authenticated": False, "error": f"not {spec['token']}"}
            user, audience = self.server.tokens.get(name, ("", ""))
            if audience in spec["audiences"]:
                status = {
                    "authenticated": True,
                    "user": {"username": user},
                    "audiences": [audience],
                }
            self.send_response(503 if self.server.down else 201)
            self.end_headers()
            self.wfile.write(json.dumps({"kind": "TokenReview", "status": status}).encode())

        def log_message(self, *_):
            pass


class Secured:
    """A monitor behind TLS and tokens."""

    def __init__(self, folder, authority, review_arguments):
        self.folder, self.ca = folder, folder / "ca.crt"
        self.ca.write_bytes(authority.pem)
        self.port, self.metrics = free_port(), free_port()
        self.process = Process(
            folder,
            *("--state", "state", "--listen", f"127.0.0.1:{self.port}"),
            *("--tls", str(authority.issue(folder / "served")), "--auth", "token"),
            *("--operator", "/".join(OPERATOR), "--metrics-port", str(self.metrics)),
            *review_arguments,
        ).start()

    def channel(self, token, *, aio=True):
        file = None
        if token is not None:
            file = self.folder / f"token-{token[-12:]}"
            file.write_text(f"{token if '.' in token else token_of(token)}\n")
        security = ClientSecurity(ca=self.ca, token=file)
        return open_channel(f"127.0.0.1:{self.port}", aio=aio, security=security)

    def refusals(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics") as page:
            lines = page.read().decode().splitlines()
        name = "forkcast_monitor_requests_refused_total{reason="
        return {
            line.removeprefix(name).split('"')[1]: float(line.split()[-1])
            for line in lines
            if line.startswith(name)
        }


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    authority = Authority()
    folder = tmp_path_factory.mktemp("reviews")
    server = TokenReviews(authority.issue(folder / "tls"))
    server.authority = authority
    for token, user, audience in (
        ("operators", "system:serviceaccount:forkcast-system:forkcast-operator", AUDIENCE),
        ("teams", "system:serviceaccount:team:trainer", AUDIENCE),
        ("others", "system:serviceaccount:other:trainer", AUDIENCE),
        ("for-the-api", "system:serviceaccount:team:trainer", "https://kubernetes.default.svc"),
        ("persons", "alice", AUDIENCE),
    ):
        server.tokens[token] = (user, audience)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def secured(reviews, tmp_path_factory):
    folder = tmp_path_factory.mktemp("secured")
    (folder / "own").write_text("the-monitors-own\n")
    (folder / "api.crt").write_bytes(reviews.authority.pem)
    one = Secured(
        folder,
        Authority(),
        ["--review-url", reviews.url, "--review-ca", "api.crt", "--review-token", "own"],
    )
    asyncio.run(register(one, "operators"))
    yield one
    one.process.kill()


async def register(secured, token, *runs):
    async with secured.channel(token) as channel:
        for uid, namespace in runs or (("a", "team"), ("b", "other")):
            await MonitorStub(channel).RegisterRun(
                registration(uid, namespace), wait_for_ready=True
            )


def greeted(channel):
    """The code that a trainer's hello ends with. Of the asyncio client, whose write may fail before
    it has read why, the code would be INTERNAL.
    """
    hello = pb.StatsBatch(hello=pb.Hello(run_uid="a"))
    with channel, pytest.raises(grpc.RpcError) as refused:
        list(MonitorStub(channel).Report(iter([hello]), timeout=HANG_SECONDS))
    return refused.value.code().name


async def code_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code().name


@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [
        (None, "UNAUTHENTICATED", "missing"),
        ("nobodys", "UNAUTHENTICATED", "invalid"),
        ("for-the-api", "UNAUTHENTICATED", "invalid"),
        ("persons", "PERMISSION_DENIED", "not_an_account"),
        ("others", "PERMISSION_DENIED", "foreign_namespace"),
    ],
)
def test_nobody_else_gets_in_and_it_is_counted(secured, token, code, reason):
    async def ask():
        before = secured.refusals().get(reason, 0)
        async with secured.channel(token) as channel:
            stub = MonitorStub(channel)
            window = pb.GetWindowRequest(run_uid="a")
            assert await code_of(stub.GetWindow(window)) == code
            watch = stub.WatchTriggers(pb.WatchTriggersRequest(run_uid="a"))
            assert await code_of(watch.read()) == code
            assert await code_of(stub.ListEvents(pb.ListEventsRequest(run_uid="a"))) == code
        assert greeted(secured.channel(token, aio=False)) == code
        assert secured.refusals()[reason] == before + 4

    asyncio.run(ask())


def test_a_trainer_reports_its_namespaces_runs_and_does_nothing_else(secured):
    async def ask():
        async with secured.channel("teams") as channel:
            stub = MonitorStub(channel)
            await Talker(channel, "a", statistics("a", 30)).talk()
            assert (await stub.GetWindow(pb.GetWindowRequest(run_uid="a"))).window.run_uid == "a"
            listed = await stub.ListRuns(pb.ListRunsRequest())
            assert [one.run_uid for one in listed.runs] == ["a"]
            assert not (await stub.ListEvents(pb.ListEventsRequest(run_uid="a"))).events
            directive = {"run_uid": "a", "id": "x", "checkpoint_now": {}}
            for call in (
                stub.RegisterRun(registration("c")),
                stub.ForgetRun(pb.ForgetRunRequest(run_uid="a")),
                stub.PostDirective(pb.PostDirectiveRequest(directive=directive)),
                stub.WatchTriggers(pb.WatchTriggersRequest()).read(),
            ):
                assert await code_of(call) == "PERMISSION_DENIED"
        async with secured.channel("operators") as channel:
            stub = MonitorStub(channel)
            await stub.PostDirective(pb.PostDirectiveRequest(directive=directive))
            assert len((await stub.ListRuns(pb.ListRunsRequest())).runs) == 2

    asyncio.run(ask())


def test_a_token_is_asked_about_once_and_read_anew_when_replaced(secured, reviews):
    reviews.tokens["first-token"] = reviews.tokens["second-token"] = reviews.tokens["teams"]

    async def ask():
        async with secured.channel("first-token") as channel:
            stub = MonitorStub(channel)
            asked = [stub.ListRuns(pb.ListRunsRequest()) for _ in range(20)]
            assert all(len(reply.runs) == 1 for reply in await asyncio.gather(*asked))
            assert reviews.asked["first-token"] == 1
            (secured.folder / "token-first-token").write_text(token_of("second-token"))
            await stub.ListRuns(pb.ListRunsRequest())
            assert reviews.asked["second-token"] == 1

    asyncio.run(ask())


def test_nobody_new_gets_in_while_tokens_cannot_be_reviewed(secured, reviews):
    async def ask():
        async with secured.channel("teams") as channel:  # known for a minute
            assert await MonitorStub(channel).ListRuns(pb.ListRunsRequest())
        reviews.tokens["unseen"] = reviews.tokens["teams"]
        reviews.down = True
        try:
            async with secured.channel("unseen") as channel:
                stub = MonitorStub(channel)
                assert await code_of(stub.ListRuns(pb.ListRunsRequest())) == "UNAVAILABLE"
                reviews.down = False
                assert await stub.ListRuns(pb.ListRunsRequest())
        finally:
            reviews.down = False

    asyncio.run(ask())
    assert secured.refusals()["review_failed"] >= 1


def test_no_token_is_written_down(secured):
    logged = secured.process.logged()
    with urllib.request.urlopen(f"http://127.0.0.1:{secured.metrics}/metrics") as page:
        shown = page.read().decode()
    for token in ("the-monitors-own", "nobodys", "for-the-api"):
        assert token not in logged
        assert token not in shown


def test_the_cache_is_for_a_minute_and_bounded(monkeypatch):
    monkeypatch.setattr(access, "_MOST_CACHED", 3)
    asked, now = Counter(), [0.0]

    def reviewer(token):
        name = token.rpartition(".")[2]
        asked[name] += 1
        if name == "down":
            raise ReviewUnavailableError
        return Reviewed(authenticated=name != "bad", namespace="n", account="a")

    class Context:
        def __init__(self, token):
            self.token = token

        def invocation_metadata(self):
            return (("authorization", f"Bearer {token_of(self.token)}"),)

        def peer(self):
            return "ipv4:10.0.0.1:1234"

    async def play():
        admission = access.ByToken(reviewer, frozenset({"n/a"}), AUDIENCE, clock=lambda: now[0])

        async def ask(token):
            try:
                return (await admission(Context(token))).operator
            except access.RefusedError as error:
                return error.code.name

        assert [await ask("good"), await ask("good")] == [True, True]
        assert [await ask("bad"), await ask("bad")] == ["UNAUTHENTICATED"] * 2
        assert [await ask("down"), await ask("down")] == ["UNAVAILABLE"] * 2
        assert asked == {"good": 1, "bad": 1, "down": 2}  # a failure is not an answer
        now[0] = 59.0
        await ask("good")
        await ask("bad")
        assert (asked["good"], asked["bad"]) == (1, 2)
        now[0] = 61.0
        await ask("good")
        assert asked["good"] == 2
        for n in range(5):
            await ask(f"t{n}")
        await ask("good")
        assert asked["good"] == 3
        assert len(admission._good) == 3

    asyncio.run(play())


def test_certificates_say_whose_they_are(tmp_path):
    authority, port = Authority(), free_port()
    served = authority.issue(tmp_path / "served")
    teams = authority.issue(tmp_path / "teams", uri="spiffe://cluster.local/ns/team/sa/trainer")
    named = authority.issue(tmp_path / "named", name="the-operator")
    strange = Authority().issue(tmp_path / "strange", name="the-operator")
    operator = "ns/forkcast-system/sa/forkcast-operator"
    foreign = authority.issue(tmp_path / "foreign", uri=f"spiffe://elsewhere.example/{operator}")
    posing = authority.issue(tmp_path / "posing", name="forkcast-system/forkcast-operator")
    prefixed = authority.issue(tmp_path / "prefixed", name="cn:the-operator")
    true = authority.issue(tmp_path / "true", uri=f"spiffe://cluster.local/{operator}")
    target = f"127.0.0.1:{port}"
    monitor = Process(
        tmp_path,
        *("--state", "state", "--listen", target, "--tls", str(served)),
        *("--operator", "cn:the-operator", "--operator", "forkcast-system/forkcast-operator"),
    ).start()

    async def ask():
        async with open_channel(target, aio=True, tls=named) as channel:
            stub = MonitorStub(channel)
            await stub.RegisterRun(registration("a"), wait_for_ready=True)
            await stub.RegisterRun(registration("b", "other"))
        async with open_channel(target, aio=True, tls=teams) as channel:
            stub = MonitorStub(channel)
            assert [one.run_uid for one in (await stub.ListRuns(pb.ListRunsRequest())).runs] == [
                "a"
            ]
            window = pb.GetWindowRequest(run_uid="b")
            assert await code_of(stub.GetWindow(window)) == "PERMISSION_DENIED"
            assert await code_of(stub.RegisterRun(registration("c"))) == "PERMISSION_DENIED"
        for tls, code in (
            (true, None),
            (foreign, "UNAUTHENTICATED"),  # signed by our authority, for another domain
            (posing, "PERMISSION_DENIED"),  # a common name is never an account
            (prefixed, "PERMISSION_DENIED"),
        ):
            async with open_channel(target, aio=True, tls=tls) as channel:
                call = MonitorStub(channel).RegisterRun(registration("c"))
                if code is None:
                    await call
                else:
                    assert await code_of(call) == code
        for channel in (
            open_channel(target, aio=True, tls=strange),
            open_channel(target, aio=True, insecure_dev=True),
        ):
            async with channel:
                call = MonitorStub(channel).ListRuns(pb.ListRunsRequest(), timeout=HANG_SECONDS)
                assert await code_of(call) == "UNAVAILABLE"

    try:
        asyncio.run(ask())
    finally:
        monitor.kill()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "127.0.0.1:0"], "plain text is refused"),
        (["--listen", "127.0.0.1:0", "--auth", "token"], "needs --tls"),
        (["--listen", "unix:x", "--review-url", "https://x"], "go together"),
        (["--listen", "127.0.0.1:0", "--tls", "missing"], "No such file"),
        (["--listen", "unix:x", "--operator", "the-operator"], "cn:the-operator"),
    ],
)
def test_what_would_not_be_safe_does_not_start(tmp_path, arguments, says):
    one = Process(tmp_path, "--state", "state", *arguments).start()
    assert one.process.wait() == 2
    assert "error: " in one.logged()
    assert says in one.logged()


# ------------------------------------------------------------------------------------ a real cluster


@pytest.fixture
def kubectl(api_server):
    """kubectl against a real API server."""

    def run(*arguments, given=None):
        done = subprocess.run(
            ["kubectl", *arguments],
            input=given,
            env=api_server,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def address(kubectl, folder):
    """Its address and the authority of its certificate, for the monitor, which trusts no other."""
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    cluster, file = config["clusters"][0]["cluster"], folder / "api.crt"
    if "certificate-authority" in cluster:
        return cluster["server"], Path(cluster["certificate-authority"])
    if "certificate-authority-data" in cluster:
        file.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        return cluster["server"], file
    port = urlsplit(cluster["server"]).port  # a kubeconfig that trusts whoever answers
    command = ["openssl", "s_client", "-showcerts", "-connect", f"127.0.0.1:{port}"]
    shown = subprocess.run(command, input="", capture_output=True, text=True, check=True).stdout
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    found = [part.partition(end)[0] for part in shown.split(begin)[1:]]
    file.write_text("".join(f"{begin}{one}{end}\n" for one in found))
    return f"https://localhost:{port}", file


def test_tokens_of_a_real_cluster(kubectl, tmp_path):
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        for name in ("forkcast-system", "team", "other")
    ]
    for namespace, name in (
        OPERATOR,
        ("forkcast-system", "monitor"),
        ("team", "t"),
        ("other", "t"),
    ):
        metadata = {"namespace": namespace, "name": name}
        objects.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    objects.append(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "forkcast-monitor-reviews"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:auth-delegator",
            },
            "subjects": [
                {"kind": "ServiceAccount", "namespace": "forkcast-system", "name": "monitor"}
            ],
        }
    )
    kubectl("apply", "-f", "-", given=yaml.safe_dump_all(objects))

    def token(namespace, name, *more):
        return kubectl("create", "token", name, "-n", namespace, *more).strip()

    def meant(namespace, name):
        return token(namespace, name, f"--audience={AUDIENCE}")

    url, authority = address(kubectl, tmp_path)
    (tmp_path / "own").write_text(token("forkcast-system", "monitor"))
    secured = Secured(
        tmp_path,
        Authority(),
        ["--review-url", url, "--review-ca", str(authority), "--review-token", "own"],
    )

    async def ask():
        await register(secured, meant(*OPERATOR))
        for given, code in (
            (meant("team", "t"), None),
            (meant("other", "t"), "PERMISSION_DENIED"),
            (token("team", "t"), "UNAUTHENTICATED"),  # meant for the API server
            (meant("team", "t")[:-4] + "AAAA", "UNAUTHENTICATED"),
        ):
            async with secured.channel(given) as channel:
                call = MonitorStub(channel).GetWindow(pb.GetWindowRequest(run_uid="a"))
                if code is None:
                    await call
                else:
                    assert await code_of(call) == code
        gone = meant("team", "t")
        kubectl("delete", "serviceaccount", "t", "-n", "team")  # its tokens end with it
        async with secured.channel(gone) as channel:
            call = MonitorStub(channel).GetWindow(pb.GetWindowRequest(run_uid="a"))
            assert await code_of(call) == "UNAUTHENTICATED"

    try:
        asyncio.run(ask())
        until(lambda: secured.refusals().get("invalid", 0) >= 3)
    finally:
        secured.process.kill()
        for namespace in ("team", "other"):
            kubectl("delete", "namespace", namespace, "--wait=false")
