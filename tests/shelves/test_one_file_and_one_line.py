"""A signal, a search strategy, a clipping policy, a schedule, an optimizer and a model family are one file
and one line each: put into a copy of the tree, they are in the manifest, the cluster's definitions, a real
run, its decision, its history and its report, and the shipped proxy still answers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from forkcast.actions import Lattice
from forkcast.decision import Decision, ProxyAnswer
from forkcast_wire.documents import load
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.statistics import read_history
from tests.make import little_text, tiny_run

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
PACKAGES = ("core", "protos", "trainer", "monitor_svc", "proxy_svc", "operator", "watch", "cli")
#: The file of a thing, where it goes, its registry's import and line.
TOYS = {
    "jumpy": ("monitor_svc/forkcast_monitor/signals", "Jumpy", "SIGNALS"),
    "backwards": ("operator/forkcast_operator/search", "Backwards", "SEARCH"),
    "stairs": ("core/forkcast/schedules", "Stairs", "SCHEDULES"),
    "signs": ("trainer/forkcast_trainer/optimizers", "Signs", "OPTIMIZERS"),
    "halving": ("trainer/forkcast_trainer/clipping", "Halving", "CLIPPING"),
    "pairs": ("trainer/forkcast_trainer/models", "Pairs", "FAMILIES"),
}
MANIFEST = tiny_run(
    "toys",
    data=little_text(32, maxBatches=2, everySteps=50),
    optimizer={
        "name": "signs",
        "schedule": {"type": "stairs", "warmupSteps": 5},
        "clipping": {"policy": "halving"},
    },
    training={"totalSteps": 100, "microBatchSize": 2},
    checkpoint={"everySteps": 50, "ringEverySteps": 10, "ringKeep": 16},
    uncertainty={
        "window": 32,
        "warmupSteps": 20,
        "weights": {"jumpy": "1"},
        "trigger": {"z": "6", "singleZ": "6"},
    },
    branching={
        "mode": "DryRun",
        "search": "backwards",
        "actions": {"clipping": ["Keep", "halving"]},
        "topK": 1,
        "candidates": 4,
        "rungs": [2],
        "confirm": {"steps": 0},
        "rollback": {"depths": [0]},
        "budget": {"maxBranches": 1},
    },
    proxy={"horizonSteps": 50, "timeoutSeconds": "60"},
)
MANIFEST["spec"]["model"]["architecture"] = "pairs"


class Copy:
    """The tree with the toys in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in (*PACKAGES, "scripts", "charts"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name, (shelf, kind, registry) in TOYS.items():
            shutil.copy(HERE / f"{name}.py", folder / shelf)
            path = folder / shelf / "__init__.py"
            module = f"{Path(shelf).parent.name}.{Path(shelf).name}.{name}"
            head, named, rest = path.read_text().partition(f"\n{registry}: ")
            assert named
            opening, brace, entries = rest.partition("= {\n")
            line = f'    "{name}": {kind},\n'
            text = f"{head}\nfrom {module} import {kind}\n{named}{opening}{brace}{line}{entries}"
            path.write_text(text)
        paths = [str(folder / name) for name in PACKAGES]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.python("scripts/generate_crds.py")

    def python(
        self, *arguments: str, code: int = 0, cwd: Path | None = None, **environment: str
    ) -> str:
        """Run Python on the copy; returns what it printed, both ways."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd or self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"))


def test_the_generated_definitions_name_them_and_are_then_up_to_date(copy: Copy) -> None:
    copy.python("scripts/generate_crds.py", "--check")
    path = copy.folder / "charts/forkcast/files/crds/trainingruns.forkcast.dev.yaml"
    spec = yaml.safe_load(path.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    spec = spec["properties"]["spec"]["properties"]
    branching = spec["branching"]["properties"]
    assert "backwards" in branching["search"]["enum"]
    assert "halving" in branching["actions"]["properties"]["clipping"]["items"]["enum"]
    assert "signs" in spec["optimizer"]["properties"]["name"]["enum"]
    schedule = spec["optimizer"]["properties"]["schedule"]["properties"]
    assert "stairs" in schedule["type"]["enum"]
    clipping = spec["optimizer"]["properties"]["clipping"]["properties"]
    assert "halving" in clipping["policy"]["enum"]
    weights = spec["uncertainty"]["properties"]["weights"]
    assert "jumpy" in weights["properties"]


def test_a_manifest_takes_them_here_and_not_where_they_are_not(copy: Copy, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(MANIFEST))
    load_it = (
        "import sys, pathlib; from forkcast_wire.manifest_file import load_manifest as f; "
        "f(pathlib.Path(sys.argv[1]))"
    )
    copy.python("-c", load_it, str(path))
    spec = MANIFEST["spec"]
    for parts, said in (
        (
            {"uncertainty": spec["uncertainty"]},
            "one of volatility, entropy, drift, disagreement; got",
        ),
        ({"branching": {"search": "backwards"}}, "one of Lattice, Random, Bandit, Bayesian; got"),
        (
            {"optimizer": {"schedule": {"type": "stairs"}}},
            "one of Cosine, Linear, WSD, Constant; got",
        ),
        ({"optimizer": {"name": "signs"}}, "one of AdamW, AdamW8bit, Muon; got 'signs'"),
        ({"optimizer": spec["optimizer"]}, "one of None, Norm, ZClip, ARC, SPAM; got 'halving'"),
    ):
        needed = {name: spec[name] for name in ("data", "training")}
        with pytest.raises(ValidationError, match=said):
            TrainingRunSpec.model_validate({**needed, **parts})


def test_without_weights_a_signal_has_the_share_that_its_file_gives(copy: Copy) -> None:
    said = copy.python(
        "-c",
        "from forkcast_monitor.config import configure as c\n"
        "from forkcast_wire.manifest import Uncertainty\n"
        "import json; print(json.dumps(dict(c(Uncertainty()).weights)))",
    )
    shares = {"jumpy": 0.2, "volatility": 0.4, "entropy": 0.24, "drift": 0.16, "disagreement": 0}
    assert json.loads(said) == pytest.approx(shares)


def test_the_shipped_proxy_answers_about_all_other_actions(copy: Copy) -> None:
    test = (ROOT / "tests/proxy/test_shipped_model.py").read_text()
    (copy.folder / "test_shipped_model.py").write_text(test)
    copy.python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shipped_model.py", "-k", "loads"
    )
    said = copy.python("-c", _ASK)
    assert json.loads(said.splitlines()[-1]) == {
        "note": "",
        "halving": "out of distribution: clipping_other",  # it has met none like it
        "ZClip": "answered",
    }


_ASK = """
import json, numpy as np
from forkcast.actions import Action
from forkcast.decision import Candidate
from forkcast.records import WINDOW_COLUMNS, Window
from forkcast_proxy.forecast import forecast
from forkcast_proxy.server import Proxy
rng = np.random.default_rng(0)
columns = {name: np.exp(0.05 * rng.standard_normal(64)) for name in WINDOW_COLUMNS}
columns |= {
    "step": np.arange(150.0, 214.0), "loss": 2.8 + 0.05 * rng.standard_normal(64),
    "learning_rate": np.full(64, 3e-3), "update_ratio": np.full(64, 2e-3),
    "update_cosine": np.full(64, 0.1), "attention_logit_max": np.full(64, 2.0),
    "validation_loss": np.full(64, 2.8), "index_z": rng.standard_normal(64),
}
columns["grad_norm_clipped"] = np.minimum(columns["grad_norm"], 1.0)
proxy = Proxy()
asked = [Candidate(name=n, action=Action(clipping=n, rewind_steps=5)) for n in ("halving", "ZClip")]
answers, _ = forecast(proxy.model, Window("u", 0, 600, columns), asked, 50)
said = {one.candidate: one.abstained or "answered" for one in answers}
print(json.dumps({"note": proxy.note, **said}))
"""


@pytest.fixture(scope="module")
def run(copy: Copy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the manifest on the copy."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "m.yaml").write_text(yaml.safe_dump(MANIFEST))
    command = ("-m", "forkcast_cli", "run", "m.yaml", "--workdir", "w", "--quiet")
    # its last forty steps take a moment: it would be over before its branch is
    decided = folder / "w/branches/e0-t60/decision.json"
    copy.python(*command, cwd=folder, FORKCAST_WAIT=f"trainer/step/70:{decided}")
    return folder / "w"


def test_a_signal_counts_in_the_index_and_is_in_trigger_history_and_report(
    copy: Copy, run: Path
) -> None:
    rows = {row["step"]: row for row in read_history(run / "statistics")}
    assert rows[60]["u_jumpy"] == rows[60]["index"] == 8  # it alone has a weight
    assert {row["u_jumpy"] for step, row in rows.items() if step < 60} == {0.0, 0.5}
    explained = copy.python("-m", "forkcast_cli", "explain", "last", "-d", str(run))
    assert "At step 60: jumpy 8.0: it jumped at its step 61." in " ".join(explained.split())
    copy.python("-m", "forkcast_cli", "report", str(run))
    page = (run / "report.html").read_text()
    assert "jumpy" in page.partition("Parts of the index")[2]


def test_a_schedule_sets_the_rates(run: Path) -> None:
    rates = {row["step"]: row["learning_rate"] for row in read_history(run / "statistics")}
    assert rates[5] == rates[49] == 2 * rates[50] > 0


def test_an_optimizer_trains_is_saved_and_planned(copy: Copy, run: Path) -> None:
    """Its run has a state of another optimizer than AdamW, and it went on from one of them."""
    said = copy.python("-c", _STATE, str(run))
    assert said.splitlines()[-1] == "signs ['momentum']"
    rows = read_history(run / "statistics")
    assert rows[-1]["loss"] < rows[0]["loss"]
    copy.python("-m", "forkcast_cli", "plan", str(run.parent / "m.yaml"))


_STATE = """
import sys, pathlib
from forkcast_trainer.checkpoint import read_container
path = sorted(pathlib.Path(sys.argv[1]).glob("checkpoints/*/*/*/*.ptz"))[-1]
saved = read_container(path)
slots = {name.rpartition(".")[2] for name in saved.tensors if name.startswith("optimizer.")}
print(saved.meta["optimizer"], sorted(slots))
"""


def test_a_search_drafts_and_a_clipping_policy_clips(run: Path) -> None:
    decision = load(Decision, (run / "branches/e0-t60/decision.json").read_bytes())
    lattice = Lattice(clipping=("Keep", "halving"), rewind_steps=(60 - decision.bases[0].step,))
    drawn = [one.action for one in decision.draft.candidates]
    assert decision.draft.strategy == "backwards"
    assert drawn == list(lattice.actions())[::-1][:4]
    assert decision.draft.proxy in (ProxyAnswer.ANSWERED, ProxyAnswer.ABSTAINED)
    for row in read_history(run / "statistics")[:50]:
        assert row["grad_norm_clipped"] == pytest.approx(0.5 * row["grad_norm"], rel=1e-5)


def test_a_family_is_planned_trained_forked_and_exported(copy: Copy, run: Path) -> None:
    parameters = 2 * 257 * 16 + 16 * 16
    planned = json.loads(
        copy.python("-m", "forkcast_cli", "plan", str(run.parent / "m.yaml"), "--json")
    )
    assert planned["model"]["parameters"] == parameters
    rows = list(read_history(run / "statistics"))
    assert sum(row["loss"] for row in rows[-10:]) / 10 < rows[0]["loss"] - 0.1
    assert {row["attention_entropy"] for row in rows} == {None}  # it has no attention
    decision = load(Decision, (run / "branches/e0-t60/decision.json").read_bytes())
    assert len(decision.trials) == 2  # the control and a candidate, each a rollout of its own
    export = ("-m", "forkcast_cli", "checkpoint", "export", str(run))
    copy.python(*export, str(run / "weights.safetensors"), "--as", "safetensors")
    said = copy.python(*export, str(run / "hf"), code=2)
    assert "pairs has no layout of Hugging Face's; export as safetensors" in " ".join(said.split())
