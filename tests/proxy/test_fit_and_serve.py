"""From records to served forecasts; and every model that must be refused, refused."""

import dataclasses
import hashlib
import signal
import subprocess
import sys

import grpc
import numpy as np
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper, numpy_helper

from forkcast.actions import Action, Lattice
from forkcast.decision import Candidate
from forkcast.records import WINDOW_COLUMNS, Window
from forkcast_proxy import fit as fitting
from forkcast_proxy.baselines import exponential, last_value, power_law
from forkcast_proxy.card import Card
from forkcast_proxy.evaluation import rank_correlation
from forkcast_proxy.features import FEATURE_NAMES, features
from forkcast_proxy.network import Targets, _backward, _errors, _forward, _start, fit, to_onnx
from forkcast_proxy.records import Fork, Outcome, Record, read, recovery_steps, write
from forkcast_proxy.server import NO_MODEL
from forkcast_proxy.session import ModelRejectedError, check, open_model
from forkcast_proxy.table import FOLDS, folds, tabulate
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import candidate_to_wire, forecast_from_wire, window_to_wire
from forkcast_wire.documents import dump, load
from forkcast_wire.forkcast_pb2 import ForecastRequest
from forkcast_wire.forkcast_pb2_grpc import ProxyStub
from tests.waiting import HANG_SECONDS, running, until

CHOICES = list(Lattice(rewind_steps=(0, 50)).actions())


def made_window(rng, slope):
    columns = {name: np.exp(0.1 * rng.standard_normal(64)) for name in WINDOW_COLUMNS}
    columns["step"] = np.arange(200.0, 264.0)
    columns["loss"] = 3.0 + slope * np.linspace(-1, 0, 64) + 0.02 * rng.standard_normal(64)
    return Window("u", 0, 1000, columns)


def made_records(runs=24, actions=9, *, informative=True, seed=0):
    """Runs whose outcome follows from slope and action (or from nothing)."""
    rng = np.random.default_rng(seed)
    records = []
    for run in range(runs):
        slope = rng.uniform(-0.5, 0.5)
        fork = Fork(
            run=f"r{run}", regime="made", cause="drawn", step=264, window=made_window(rng, slope)
        )
        for action in [Action(), *rng.choice(np.array(CHOICES, object), actions, replace=False)]:
            change = 0.4 * slope + 0.5 * (action.learning_rate_scale - 1) if informative else 0.0
            noise = 0.01 if informative else 0.3
            for horizon in (50, 200):
                outcome = Outcome(
                    horizon=horizon,
                    loss=3.0,
                    mean_loss=float(3.0 + change + noise * rng.standard_normal()),
                    control_loss=3.0,
                    control_mean_loss=3.0,
                    diverged=False,
                    event=bool(slope > 0.2) if informative else bool(rng.random() < 0.3),
                    control_event=False,
                    recovery_steps=float(rng.integers(0, 50)),
                    steps_run=200,
                    healthy=True,
                )
                records.append(Record(fork=fork, action=action, outcome=outcome))
    return records


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write(made_records(60, 8), folder / "records.parquet")
    command = [sys.executable, "-m", "forkcast_proxy.fit", "records.parquet", "-o", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def card_of(folder) -> Card:
    return load(Card, (folder / "model.json").read_bytes())


def test_records_survive_the_file(tmp_path):
    written = made_records(2, 2)
    write(written, tmp_path / "r.parquet")
    for mine, theirs in zip(written, read(tmp_path / "r.parquet"), strict=True):
        assert (mine.action, mine.outcome) == (theirs.action, theirs.outcome)
        for name in WINDOW_COLUMNS:
            np.testing.assert_array_equal(
                mine.fork.window.columns[name], theirs.fork.window.columns[name]
            )


def test_recovery_counts_what_came_after_the_fork_not_the_calm_before_it():
    losses = {now: 4.0 if 100 <= now < 160 else 3.0 for now in range(300)}
    assert recovery_steps(losses, 100, 300, 3.1) == 51  # 11 of those 20 are calm
    assert recovery_steps(losses, 100, 150, 3.1) == 50
    assert recovery_steps(losses, 200, 250, 3.1) == 0
    assert recovery_steps({}, 100, 150, 3.1) == 50


def test_gradients_are_the_slopes_of_the_loss():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 7))
    values = np.stack([rng.normal(size=12), rng.random(12) < 0.5, rng.normal(size=12)], axis=1)
    known = rng.random((12, 3)) < 0.8
    known[:, 1] = True
    targets = Targets(values, known, np.repeat(np.arange(3), 4), np.repeat(np.arange(3), 4))
    weights, weight = _start(rng, 7), rng.poisson(1.0, (5, 3))[:, targets.runs].astype(float)

    def loss(w):
        return _errors(_forward(w, x)["out"], targets, weight)[0] * 5  # members count as one each

    seen = _forward(weights, x)
    slopes = _backward(weights, x, seen, _errors(seen["out"], targets, weight)[1])
    for name, value in weights.items():
        place = tuple(rng.integers(n) for n in value.shape)
        up, down = value.copy(), value.copy()
        up[place] += 1e-6
        down[place] -= 1e-6
        numeric = (loss(weights | {name: up}) - loss(weights | {name: down})) / 2e-6
        assert slopes[name][place] == pytest.approx(numeric, rel=2e-3, abs=1e-6), name


def test_export_gives_the_networks_numbers(tmp_path):
    table = tabulate(made_records(12))
    network = fit(table.matrix, table.targets, seed=0)
    data = to_onnx(network)
    check(data, hashlib.sha256(data).hexdigest())
    session = onnx.load_model_from_string(data)
    import onnxruntime as ort

    run = ort.InferenceSession(session.SerializeToString(), providers=["CPUExecutionProvider"])
    mean, spread = run.run(["mean", "spread"], {"features": table.matrix[:128]})
    expected, apart = network.predict(table.matrix[:128])
    np.testing.assert_allclose(mean, expected, atol=2e-5)
    np.testing.assert_allclose(spread, apart, atol=2e-5)


def test_what_can_be_learned_is_served(model_dir):
    card = card_of(model_dir)
    assert card.horizons == (50, 200)
    both = (50, 200)
    assert card.served == {"loss": both, "divergence": both, "recovery": (), "risk": both}
    figures = card.figures
    for h in both:
        assert figures[f"loss_mae_h{h}"] < 0.5 * figures[f"loss_mae_last_value_shifted_h{h}"]
        assert figures[f"rank_correlation_h{h}"] > 0.5
        assert figures[f"top6_recall_h{h}"] > figures[f"top6_recall_by_chance_h{h}"]
        assert figures[f"loss_coverage_h{h}_low"] <= 0.9 <= figures[f"loss_coverage_h{h}_high"]
        assert figures[f"event_rate_where_passed_h{h}"] < 0.2


def test_noise_is_withheld():
    _, card = fitting.build(made_records(30, 8, informative=False), "noise", 0)
    assert set(card.served.values()) == {()}


def test_too_few_runs_are_refused():
    with pytest.raises(ValueError, match="too few"):
        fitting.build(made_records(4), "few", 0)


def test_runs_are_never_split():
    table = tabulate(made_records(20, 3))
    fold = folds(table.targets.runs, 3)
    parts = [set(table.targets.runs[fold == one].tolist()) for one in range(FOLDS)]
    assert [len(part) for part in parts] == [4] * FOLDS
    assert len(set.union(*parts)) == 20


# -------------------------------------------------------------------------------------- refused models


def rewritten(folder, tmp_path, change, **card_changes):
    """A copy of the model after ``change``, with a card whose digest fits."""
    model = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
    change(model)
    data = model.SerializeToString()
    card = dataclasses.replace(
        card_of(folder), sha256=hashlib.sha256(data).hexdigest(), **card_changes
    )
    (tmp_path / "model.onnx").write_bytes(data)
    (tmp_path / "model.json").write_bytes(dump(card))
    return tmp_path


def nothing(_model):
    pass


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "../../../etc/passwd", "length": "4"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def sparse(model):
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def custom(model):
    model.graph.node[0].domain = "com.evil"


def unlisted(model):
    model.graph.node.append(helper.make_node("Loop", [], []))


def not_finite(model):
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def hollow(model):
    model.graph.initializer[0].raw_data = b"\0\0\0\0"


def constant(model):
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    model.graph.node[0].attribute.append(helper.make_attribute("value", values))


def cut(model):
    del model.graph.node[3:6]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (external, "external file"),
        (sparse, "sparse"),
        (custom, "other domains"),
        (unlisted, "operator Loop"),
        (not_finite, "non-finite"),
        (hollow, "does not fill"),
        (constant, "holds more"),
        (cut, "model:"),
    ],
)
def test_hostile_models_never_run(model_dir, tmp_path, change, says):
    with pytest.raises(ModelRejectedError, match=says):
        open_model(rewritten(model_dir, tmp_path, change))


def test_a_model_of_another_card_is_refused(model_dir, tmp_path):
    data = (model_dir / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "model.json").write_bytes((model_dir / "model.json").read_bytes())
    with pytest.raises(ModelRejectedError, match="sha256"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 99},
        {"feature_version": 99},
        {"feature_names": FEATURE_NAMES[::-1]},
        {"feature_low": (0.0,)},
        {"served": {}},
        {"served": {"loss": (70,), "divergence": (), "recovery": (), "risk": ()}},
        {"horizons": (200, 50)},
        {"horizons": ()},
        {"risk": ()},
    ],
)
def test_other_versions_are_refused(model_dir, tmp_path, changed):
    with pytest.raises(ModelRejectedError, match=r"version mismatch|card"):
        open_model(rewritten(model_dir, tmp_path, nothing, **changed))


def test_any_flipped_byte_is_refused(model_dir):
    data = (model_dir / "model.onnx").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    for place in np.random.default_rng(0).integers(len(data), size=50):
        bad = data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]
        with pytest.raises(ModelRejectedError):
            check(bad, digest)
    for junk in (b"\xff" * 100, data[:500]):
        with pytest.raises(ModelRejectedError):
            check(junk, hashlib.sha256(junk).hexdigest())


# -------------------------------------------------------------------------------------------- serving


@pytest.fixture
def serve(tmp_path):
    """Start a real proxy on a Unix socket; returns its channel."""
    started = []

    def start(model):
        command = [sys.executable, "-m", "forkcast_proxy", "--listen", "unix:p.sock"]
        command += ["--model", str(model)]
        started.append(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL))
        channel = open_channel(f"unix:{tmp_path}/p.sock")
        grpc.channel_ready_future(channel).result(timeout=HANG_SECONDS)
        return channel, started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def request(window, horizon=200, count=128):
    rng = np.random.default_rng(1)
    chosen = rng.choice(np.array(CHOICES, object), count, replace=False)
    return ForecastRequest(
        window=window_to_wire(window),
        candidates=[
            candidate_to_wire(Candidate(name=f"c{n:03d}", action=a)) for n, a in enumerate(chosen)
        ],
        horizon_steps=horizon,
    )


def test_forecasts_over_the_wire(serve, model_dir):
    channel, process = serve(model_dir)
    asked = request(made_window(np.random.default_rng(7), 0.1))
    answer = ProxyStub(channel).Forecast(asked, timeout=HANG_SECONDS)
    assert answer.model_digest == card_of(model_dir).sha256
    assert "recovery" in answer.note
    forecasts = [forecast_from_wire(one) for one in answer.forecasts]
    assert [one.candidate for one in forecasts] == [one.name for one in asked.candidates]
    judged = [one for one in forecasts if one.abstained is None]
    assert len(judged) > 100
    for one in judged:
        assert one.recovery_steps is None
        assert 0 < one.loss.low <= one.loss.point <= one.loss.high
        p = one.p_divergence
        assert 0 <= p.low <= p.point <= p.high == one.risk <= 1
    cut = [f.loss.point for f, c in zip(forecasts, asked.candidates, strict=True) if f.loss]
    rates = [
        c.action.learning_rate_scale
        for f, c in zip(forecasts, asked.candidates, strict=True)
        if f.loss
    ]
    assert rank_correlation(np.array(cut), np.array(rates)) > 0.7
    again = ProxyStub(channel).Forecast(asked, timeout=HANG_SECONDS)
    assert again == answer
    service = health_pb2_grpc.HealthStub(channel)
    reply = service.Check(
        health_pb2.HealthCheckRequest(service="forkcast.v1.Proxy"), timeout=HANG_SECONDS
    )
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_it_abstains_beyond_what_it_knows(serve, model_dir):
    channel, _ = serve(model_dir)
    stub, rng = ProxyStub(channel), np.random.default_rng(7)

    def reasons(asked):
        answer = stub.Forecast(asked, timeout=HANG_SECONDS)
        forecasts = [forecast_from_wire(one) for one in answer.forecasts]
        for one in forecasts:
            assert (one.loss, one.p_divergence, one.risk, one.recovery_steps) == (None,) * 4
        assert answer.model_digest == ""
        return {one.abstained for one in forecasts}

    assert "2000" in next(iter(reasons(request(made_window(rng, 0.1), horizon=2000))))
    wild = made_window(rng, 0.1)
    wild.columns["loss"][-8:] = 50.0
    assert all(one.startswith("out of distribution") for one in reasons(request(wild)))
    blind = made_window(rng, 0.1)
    blind.columns["loss"][:] = np.nan
    assert "no finite loss" in next(iter(reasons(request(blind))))
    with pytest.raises(grpc.RpcError) as refused:
        stub.Forecast(ForecastRequest(), timeout=HANG_SECONDS)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    twice = request(made_window(rng, 0.1), count=2)
    twice.candidates[1].name = twice.candidates[0].name
    with pytest.raises(grpc.RpcError) as refused:
        stub.Forecast(twice, timeout=HANG_SECONDS)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("damaged", [False, True])
def test_without_a_model_the_heuristic_answers(serve, model_dir, tmp_path, damaged):
    folder = tmp_path / "none"
    if damaged:
        folder.mkdir()
        rewritten(model_dir, folder, external)
    channel, _ = serve(folder)
    answer = ProxyStub(channel).Forecast(request(made_window(np.random.default_rng(1), 0)))
    assert "external" in answer.note if damaged else answer.note == NO_MODEL
    assert answer.model_digest == ""
    assert {forecast_from_wire(one).abstained for one in answer.forecasts} == {answer.note}


def test_it_dies_with_its_parent(tmp_path):
    script = (
        "import subprocess,sys,os\n"
        "p=subprocess.Popen([sys.executable,'-m','forkcast_proxy','--listen','unix:p.sock'],"
        "env={**os.environ,'FORKCAST_PARENT':str(os.getpid())})\n"
        "print(p.pid,flush=True)\np.wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    channel = open_channel(f"unix:{tmp_path}/p.sock")
    grpc.channel_ready_future(channel).result(timeout=HANG_SECONDS)
    parent.kill()
    parent.wait()
    until(lambda: not running(child), "the proxy's end")


# ------------------------------------------------------------------------------------------ baselines


def curve(function, noise=0.0):
    rng = np.random.default_rng(0)
    steps = np.arange(100.0, 164.0)
    columns = dict.fromkeys(WINDOW_COLUMNS, steps)
    columns = {**columns, "loss": function(steps) + noise * rng.standard_normal(64)}
    return Window("u", 0, 1000, columns)


def test_learning_curves_go_on_as_they_began():
    decay = curve(lambda s: 2 + 1.5 * np.exp(-0.02 * (s - 100)))
    assert exponential(decay, 50) == pytest.approx(2 + 1.5 * np.exp(-0.02 * 113), abs=0.02)
    power = curve(lambda s: 1.0 + 8 * (s + 1) ** -0.5)
    assert power_law(power, 200) == pytest.approx(1 + 8 * 364**-0.5, abs=0.02)
    assert last_value(curve(lambda s: 0 * s + 3), 200) == pytest.approx(3.0)


@pytest.mark.parametrize("fitted", [exponential, power_law])
def test_curves_do_not_run_away(fitted):
    rising = curve(lambda s: 2 + 0.05 * (s - 100), noise=0.1)
    assert 0 <= fitted(rising, 10_000) <= 2 * rising.columns["loss"].max()
    nothing_known = Window("u", 0, 9, dict.fromkeys(WINDOW_COLUMNS, np.full(3, np.nan)))
    assert np.isnan(fitted(nothing_known, 50))
    assert features(nothing_known, [Action()], 50).shape == (1, len(FEATURE_NAMES))
