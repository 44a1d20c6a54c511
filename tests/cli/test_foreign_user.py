"""A container that a cluster runs as whatever user id it likes, of which no file of the image knows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.make import little_text, tiny_run

#: In a user namespace, so that the files of this user can be read, and no other user is needed.
_STRANGER = ["unshare", "--user", "--map-user=1000770000", "--map-group=0", "--"]


def as_a_stranger(*command, cwd):
    """The command as user 1000770000 of group 0, with HOME=/ and without USER, as OpenShift does."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    environment = {**kept, "HOME": "/", "OMP_NUM_THREADS": "1"}
    words = [*_STRANGER, sys.executable, *command]
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def stranger(tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) is not installed")
    done = as_a_stranger("-c", "import os; print(os.getuid())", cwd=tmp_path)
    if done.stdout.strip() != "1000770000":
        pytest.skip(f"no user namespace can be made here: {done.stderr.strip()}")
    return tmp_path


def test_the_trainers_libraries_are_given_a_name_of_the_user(stranger):
    """torch before 2.13 does not train without."""
    ask = "import {}getpass; print(getpass.getuser())"
    assert "uid not found" in as_a_stranger("-c", ask.format(""), cwd=stranger).stderr
    done = as_a_stranger("-c", ask.format("forkcast_trainer, "), cwd=stranger)
    assert done.stdout == "1000770000\n", done.stderr


def test_a_user_id_without_a_passwd_entry_trains_to_the_end(stranger):
    nobody = "import os, pwd; pwd.getpwuid(os.getuid())"
    assert "uid not found" in as_a_stranger("-c", nobody, cwd=stranger).stderr
    given = tiny_run(
        "stranger",
        data=little_text(32, everySteps=50, maxBatches=2),
        training={"totalSteps": 50, "microBatchSize": 2},
        checkpoint={"everySteps": 25, "ringEverySteps": 25},
        branching={"mode": "Observe"},
    )
    (stranger / "m.yaml").write_text(yaml.safe_dump(given))
    command = ("-m", "forkcast_cli", "run", "m.yaml", "--workdir", "w", "--quiet")
    done = as_a_stranger(*command, cwd=stranger)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((stranger / "w" / "complete.json").read_text())["step"] == 50
