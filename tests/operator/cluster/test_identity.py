"""Who an operator says it is."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import socket

from kubernetes.aio.client import Configuration

from forkcast_operator.kubernetes import watch
from forkcast_operator.kubernetes.__main__ import Operator
from forkcast_operator.kubernetes.cluster import RUN


def test_a_user_without_a_name_is_no_hindrance(config, monkeypatch) -> None:
    """A pod's user has a number and no entry anywhere."""

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    silent = socket.create_server(("127.0.0.1", 0))  # an API server that is slow to answer
    silent.settimeout(0)
    access = Configuration(host=f"http://127.0.0.1:{silent.getsockname()[1]}")
    operator = Operator(argparse.Namespace(namespace=["ml"]), config, access)

    async def scene():
        watching = asyncio.create_task(operator._watch([RUN], watch.Pulse([RUN]), asyncio.Event()))
        asked = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(silent))
        done, _ = await asyncio.wait({watching, asked}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {asked}, watching.exception()
        asked.result()[0].close()
        watching.cancel()
        await asyncio.wait({watching})

    with silent:
        asyncio.run(scene())
