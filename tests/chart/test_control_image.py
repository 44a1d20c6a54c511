"""Operator, monitor and proxy run on the packages that are left in the control image.

The packages of this environment that the image would install are copied into one of their own, and
pruned there by the script of the image's build. What is missing in it cannot be imported.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement

from forkcast.actions import Action
from forkcast.records import WINDOW_COLUMNS, Window
from forkcast_proxy.records import Fork, Outcome, Record, write

from .live import Installation, Processes, environment_of, fetched, object_store, until

ROOT = Path(__file__).parents[2]
NAMESPACE = "pruned"
EXTRAS = ("monitor", "proxy", "operator")
PACKAGES = ("forkcast", "forkcast_wire", "forkcast_monitor", "forkcast_proxy", "forkcast_operator")
#: What the image has room for beside Debian and Python.
MOST_BYTES = 275_000_000
#: What the image is built for; other platforms' wheels hold other files.
of_the_image = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the image holds the wheels of Python 3.11 on Linux x86-64",
)
#: A branch soon, whatever the statistics say.
FORCED = {
    "trigger": {"z": "1000", "singleZ": "1000", "forceEverySteps": 500},
    "warmupSteps": 20,
}


def wanted() -> list[Distribution]:
    """What the image installs, from pyproject.toml, with all that it needs in turn; and Forkcast."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"]]
    for extra in EXTRAS:
        asked += project["optional-dependencies"][extra]
    found: dict[str, Distribution] = {}
    left = [Requirement(text) for text in asked]
    while left:
        one = left.pop()
        name = one.name.lower().replace("_", "-").replace(".", "-")
        if name in found:
            continue
        found[name] = distribution(name)
        for need in map(Requirement, found[name].requires or ()):
            if need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)
            ):
                left.append(need)
    return [*found.values(), distribution("forkcast")]


def link(packages: list[Distribution], folder: Path) -> None:
    """The files of packages below another site-packages, without bytes being copied where the disk
    allows it. Scripts, which lie beside it, are left out.
    """
    for package in packages:
        for file in package.files or ():
            if ".." in file.parts:
                continue
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            source = Path(str(package.locate_file(file)))
            try:
                target.hardlink_to(source)
            except OSError:
                target.write_bytes(source.read_bytes())


@dataclass(frozen=True)
class Pruned:
    """An environment: its interpreter and its site-packages."""

    python: Path
    packages: Path

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    folder = tmp_path_factory.mktemp("pruned")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    link(wanted(), packages)
    script = ROOT / "scripts" / "prune_control_image.py"
    subprocess.run([sys.executable, str(script), str(packages)], check=True)
    return Pruned(folder / "bin" / "python", packages)


@of_the_image
def test_what_is_left_fits_the_image(pruned: Pruned) -> None:
    """Without bytecode, which the image does not hold."""
    files = [one for one in pruned.packages.rglob("*") if one.is_file() and one.suffix != ".pyc"]
    assert sum(one.stat().st_size for one in files) <= MOST_BYTES


def test_every_module_of_the_control_plane_is_imported(pruned: Pruned, tmp_path: Path) -> None:
    program = (
        "import importlib, pkgutil, sys\n"
        "for package in sys.argv[1:]:\n"
        "    path = importlib.import_module(package).__path__\n"
        "    for found in pkgutil.walk_packages(path, package + '.'):\n"
        "        importlib.import_module(found.name)\n"
        "        print(found.name)\n"
    )
    done = pruned.run("-c", program, *PACKAGES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "forkcast_operator.kubernetes.__main__" in done.stdout.split()


def test_what_was_pruned_is_missing(pruned: Pruned, tmp_path: Path) -> None:
    """Nothing of this environment is seen from the pruned one."""
    program = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(module)\n"
        "    except ModuleNotFoundError:\n"
        "        continue\n"
        "    print(module)\n"
    )
    pruned_modules = ("kubernetes.client.api.core_v1_api", "onnx.reference", "Crypto.PublicKey.RSA")
    done = pruned.run("-c", program, *pruned_modules, "torch", "pytest", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


def records() -> list[Record]:
    """Of 24 drawn runs, three actions each."""
    rng = np.random.default_rng(0)
    made = []
    for run in range(24):
        columns = {name: np.exp(0.1 * rng.standard_normal(64)) for name in WINDOW_COLUMNS}
        columns["step"] = np.arange(200.0, 264.0)
        window = Window("u", 0, 1000, columns)
        fork = Fork(run=f"r{run}", regime="made", cause="drawn", step=264, window=window)
        for scale in (0.5, 0.7, 1.0):
            for horizon in (50, 200):
                outcome = Outcome(
                    horizon=horizon,
                    loss=3.0,
                    mean_loss=2.0 + scale + 0.01 * float(rng.standard_normal()),
                    control_loss=3.0,
                    control_mean_loss=3.0,
                    diverged=False,
                    event=run % 3 == 0,
                    control_event=False,
                    recovery_steps=float(rng.integers(0, 50)),
                    steps_run=200,
                    healthy=True,
                )
                action = Action(learning_rate_scale=scale)
                made.append(Record(fork=fork, action=action, outcome=outcome))
    return made


def test_a_model_is_fitted_from_parquet_and_computes(pruned: Pruned, tmp_path: Path) -> None:
    """Arrow reads, onnx exports and checks, the runtime loads the model and computes with it."""
    write(records(), tmp_path / "records.parquet")
    fitted = pruned.run("-m", "forkcast_proxy.fit", "records.parquet", "-o", ".", cwd=tmp_path)
    assert fitted.returncode == 0, fitted.stderr
    program = (
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from forkcast_proxy.features import FEATURE_NAMES\n"
        "from forkcast_proxy.session import open_model\n"
        "model = open_model(Path())\n"
        "mean, spread = model.run(np.zeros((2, len(FEATURE_NAMES)), dtype=np.float32))\n"
        "assert np.isfinite(mean).all() and (spread > 0).all()\n"
    )
    done = pruned.run("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installation(
    pruned: Pruned, kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    kubectl.ok("create", "namespace", NAMESPACE)
    processes = Processes(tmp_path_factory.mktemp("live"), environment_of(kubectl))
    with object_store() as endpoint:
        made = Installation(processes, kubectl, endpoint, NAMESPACE, python=pruned.python)
        try:
            made.start()
            yield made
        finally:
            made.stop()


def test_operator_monitor_and_proxy_serve_a_run_with_a_branch(
    installation: Installation, kubectl
) -> None:
    """On a real API server: discovery, watches, lease, events, what is applied; the proxy is asked
    and the history becomes Parquet.
    """
    installation.run("calm", uncertainty=FORCED)
    until(_branch(kubectl), "a branch")
    url = f"http://{installation.targets['proxy']}/metrics"
    until(_asked(url), "a forecast")
    kubectl.ok("delete", "trun", "calm", "-n", NAMESPACE, "--wait=false")
    installation.processes.stop("monitor")
    histories = sorted((installation.processes.folder / "state").rglob("*.parquet"))
    assert histories
    assert sum(pq.read_metadata(one).num_rows for one in histories) > 500
    for name in ("operator", "monitor", "proxy"):
        log = installation.processes.log(name)
        assert not any(word in log for word in ("Traceback", "ImportError", "ModuleNotFoundError"))


def _branch(kubectl) -> Callable[[], bool]:
    return lambda: bool(kubectl.get("fkb", "-n", NAMESPACE)["items"])


def _asked(url: str) -> Callable[[], bool]:
    return lambda: "forkcast_proxy_forecasts_total{" in fetched(url)
