"""The plain HTTP ports under connections that say nothing."""

from __future__ import annotations

import socket
import threading
import urllib.request
from contextlib import ExitStack, suppress

import pytest
from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app

from forkcast_wire import pages
from forkcast_wire.pages import MOST_CONNECTIONS, MOST_PER_ADDRESS, REQUEST_SECONDS, Pages, Places
from tests.waiting import HANG_SECONDS, until


@pytest.fixture
def served():
    registry = CollectorRegistry()
    Gauge("answer", "The answer.", registry=registry).set(42)
    serving = Pages(0, make_wsgi_app(registry))
    serving.start()
    yield serving
    serving.close()


def scrape(port: int, host: str = "127.0.0.1") -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=HANG_SECONDS) as answer:
        return answer.read().decode()


def connect(port: int, source: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), HANG_SECONDS, (source, 0))


def test_an_address_has_some_places_and_all_have_some_more() -> None:
    places = Places()
    assert [places.take(n, "a", 0.0) for n in range(9)] == [True] * MOST_PER_ADDRESS + [False]
    assert places.take("b", "b", 1.0)
    places.free(8)  # it had none
    places.free(0)
    assert places.take(9, "a", 2.0)
    more = [places.take(("c", n), f"c{n}", 2.0) for n in range(MOST_CONNECTIONS)]
    assert more.count(True) == MOST_CONNECTIONS - MOST_PER_ADDRESS - 1


def test_a_connection_is_ended_after_its_time_however_it_dawdles() -> None:
    places = Places()
    places.take("old", "a", 0.0)
    places.take("new", "a", 1.0)
    assert places.overdue(REQUEST_SECONDS - 0.1) == []
    assert places.overdue(REQUEST_SECONDS) == ["old"]
    places.free("old")
    assert places.overdue(REQUEST_SECONDS) == []


def test_a_scraper_is_answered_beside_half_open_requests(served) -> None:
    """Regression: each of 1,500 took a thread for good."""
    with ExitStack() as stack:
        for _ in range(200):  # from one address
            one = stack.enter_context(connect(served.server_port, "127.0.0.2"))
            with suppress(OSError):
                one.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        assert "answer 42.0" in scrape(served.server_port)
        threads = [one.name for one in threading.enumerate() if "process_request" in one.name]
        assert len(threads) <= MOST_PER_ADDRESS + 1


def test_the_places_of_those_who_say_nothing_are_free_again(served, monkeypatch) -> None:
    monkeypatch.setattr(pages, "REQUEST_SECONDS", HANG_SECONDS)
    monkeypatch.setattr(pages._Handler, "timeout", HANG_SECONDS)
    with ExitStack() as stack:
        for number in range(MOST_CONNECTIONS):
            source = f"127.0.0.{2 + number % 60}"
            one = stack.enter_context(connect(served.server_port, source))
            one.sendall(b"GET")
        until(lambda: len(served._places._open) == MOST_CONNECTIONS, "a full house")
        with pytest.raises(OSError):
            scrape(served.server_port)
        monkeypatch.setattr(pages, "REQUEST_SECONDS", 0.0)
        until(lambda: not served._places._open, "an empty house")
    monkeypatch.setattr(pages, "REQUEST_SECONDS", REQUEST_SECONDS)
    assert "answer 42.0" in scrape(served.server_port)
