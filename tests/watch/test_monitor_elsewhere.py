"""A monitor that runs elsewhere, over mutual TLS, for many runs."""

from __future__ import annotations

import json

import pytest
import torch

import forkcast
from forkcast_wire.statistics import read_history
from tests.certificates import Authority
from tests.monitor.conftest import start_monitor
from tests.ports import free_port
from tests.waiting import until
from tests.watch.test_session import adam, children, train
from tests.watch.toys import Toy

__all__ = ["start_monitor"]


@pytest.fixture
def elsewhere(start_monitor, tmp_path, monkeypatch):
    """Its address; the environment has what a client shows."""
    authority = Authority()
    served = authority.issue(tmp_path / "served")
    shown = authority.issue(tmp_path / "shown", name="trainer")
    address = f"127.0.0.1:{free_port()}"
    arguments = ("--tls", str(served), "--operator", "cn:trainer")
    start_monitor(*arguments, listen=address)
    for name, file in (("CA", "ca.crt"), ("CERT", "tls.crt"), ("KEY", "tls.key")):
        monkeypatch.setenv(f"FORKCAST_TLS_{name}", str(shown / file))
    return address


def test_it_gets_the_run_and_tells_its_events(elsewhere, tmp_path, caplog):
    model = Toy()
    optimizer = adam(model)
    before = children()
    with forkcast.watch(model, optimizer, folder=tmp_path / "run", monitor=elsewhere) as watch:
        uid = watch._folder.run_uid
        assert children() == before  # none is started beside it
        train(model, optimizer, watch)
        watch.step(float("nan"))
        # it is registered while the training goes on
        until(lambda: watch._sink._reporter.reached(0.0), "the monitor's first answer")
    rows = read_history(tmp_path / "state" / "runs" / uid / "statistics")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [one.step for one in watch.events] == [4]
    assert "unstable at step 4" in caplog.text
    assert forkcast.load_run(tmp_path / "run").events()["step"].to_pylist() == [4]
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["step"] == 5


@pytest.mark.parametrize("trusted", [True, False])
def test_one_that_is_not_there_or_not_trusted_changes_nothing(trusted, tmp_path, monkeypatch):
    if trusted:
        monkeypatch.setenv("FORKCAST_INSECURE_DEV", "1")
    model = Toy()
    optimizer = adam(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    away = f"127.0.0.1:{free_port()}"
    torch.manual_seed(0)
    with forkcast.watch(model, optimizer, folder=tmp_path / "run", monitor=away) as watch:
        train(model, optimizer, watch)
    watched = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(start)
    torch.manual_seed(0)

    class Unwatched:
        def step(self, loss):
            pass

    train(model, adam(model), Unwatched())
    assert all(torch.equal(value, watched[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["step"] == 4
