"""What the chart tells its containers is what their commands read: each is parsed by its own
parser, and every file and folder it names is mounted.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import PurePosixPath

import pytest
import yaml

from forkcast_operator.kubernetes.config import load_config
from forkcast_wire import serving

from .values_matrix import MATRIX

COMMANDS = {
    "forkcast_operator.kubernetes": "operator",
    "forkcast_operator.uninstall": "uninstall",
    "forkcast_monitor": "monitor",
    "forkcast_proxy": "proxy",
    "forkcast_wire.health_check": "health",
}


class ParsedError(Exception):
    """Raised in place of what a command would do with its arguments."""


def _pods(objects):
    for one in objects:
        if one["kind"] == "Pod":
            yield one["spec"]
        elif one["kind"] in ("Deployment", "Job"):
            yield one["spec"]["template"]["spec"]


def _ours(objects):
    """(module, container) of everything that runs our own code."""
    for pod in _pods(objects):
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            command = container.get("command", [])
            if command[:2] == ["python", "-m"]:
                yield command[2], container


@pytest.fixture
def parse(monkeypatch):
    """The arguments as the module's own `main` reads them; a wrong one ends in SystemExit."""
    real = argparse.ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        raise ParsedError(real(parser, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)

    def parsed(module, arguments):
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        found = importlib.util.find_spec(module)
        name = f"{module}.__main__" if found.submodule_search_locations else module
        with pytest.raises(ParsedError) as caught:
            importlib.import_module(name).main()
        return caught.value.args[0]

    return parsed


@pytest.mark.parametrize("name", MATRIX)
def test_every_command_takes_its_arguments(render, parse, name):
    seen = set()
    for module, container in _ours(render(name)):
        given = parse(module, container.get("args", []))
        seen.add(COMMANDS[module])
        if hasattr(given, "listen"):
            serving.from_arguments(given)
        mounts = {one["mountPath"] for one in container.get("volumeMounts", [])}
        for option in ("config", "tls", "state", "model"):
            value = getattr(given, option, None)
            told = any(one.startswith(f"--{option}=") for one in container.get("args", []))
            assert not told or str(value) in mounts, option
    proxy = {"proxy"} if MATRIX[name].get("proxy", {}).get("enabled", True) else set()
    assert seen == {"operator", "monitor", "uninstall", "health"} | proxy


@pytest.mark.parametrize("name", MATRIX)
def test_a_wrong_argument_would_be_found(parse, name, render):
    module, container = next(_ours(render(name)))
    with pytest.raises(SystemExit):
        parse(module, [*container["args"], "--no-such-flag"])


@pytest.mark.parametrize("name", MATRIX)
def test_the_operator_reads_its_configuration(render, tmp_path, name):
    objects = render(name)
    texts = [
        one["data"]["operator.yaml"]
        for one in objects
        if one["kind"] == "ConfigMap" and "operator.yaml" in one.get("data", {})
    ]
    (text,) = texts
    path = tmp_path / "operator.yaml"
    path.write_text(text)
    config = load_config(path)
    (container,) = [c for module, c in _ours(objects) if module == "forkcast_operator.kubernetes"]
    mounts = {PurePosixPath(one["mountPath"]) for one in container["volumeMounts"]}
    assert config.monitor is not None
    services = [one for one in (config.monitor, config.proxy) if one is not None]
    files = [file for one in services for file in (one.tls, one.token_file)]
    files += [file for one in config.stores for file in (one.credentials_dir, one.ca_file)]
    for file in filter(None, files):
        place = PurePosixPath(file)
        assert mounts & {place, *place.parents}, place
    assert yaml.safe_load(text)["trainer"]["image"] == config.trainer.image
    ports = {
        f"{one['metadata']['name']}.{one['metadata']['namespace']}.svc:{port['port']}"
        for one in objects
        if one["kind"] == "Service"
        for port in one["spec"]["ports"]
        if port["name"] == "grpc"
    }
    assert {one.target for one in services} == ports
