"""What the supervisor makes of a trainer's end under torchrun, which exits with 1 for everything."""

import subprocess
from pathlib import Path

import pytest

from forkcast_cli.ending import FAILED, NOT_RECORDED
from forkcast_cli.show import last_end
from forkcast_cli.supervisor import RunFailedError, Supervisor
from forkcast_wire import beats, hang
from forkcast_wire.last_words import Ended, LastWords
from forkcast_wire.manifest import TrainingRunSpec
from tests.waiting import until

EARLIER = b"error: spec.old: of an earlier start; long mended\n"


@pytest.fixture
def died(tmp_path):
    (tmp_path / "logs").mkdir()

    def make(said, *, processes, code=1):
        spec = TrainingRunSpec.model_validate(
            {
                "data": {"train": {"uri": "python-stdlib:"}},
                "training": {"totalSteps": 10},
                "parallelism": {"processesPerNode": processes},
            }
        )
        (tmp_path / "logs" / "trainer.log").write_bytes(EARLIER + said)
        child = (one := Supervisor(spec, tmp_path)).children["trainer"]
        child.started, child.log_from = 100.0, len(EARLIER)
        one._died(child, code, 101.0)
        return child

    return make


def test_a_wrong_manifest_is_said_at_once_however_many_processes(died):
    said = b"error: spec.data.train: 3 tokens are fewer than one window; give more text\n"
    with pytest.raises(RunFailedError, match=r"spec\.data\.train"):
        died(said, processes=2)
    with pytest.raises(RunFailedError, match=r"spec\.data\.train"):
        died(said, processes=1, code=2)


def test_a_crash_is_started_again(died):
    child = died(b"Traceback (most recent call last):\nRuntimeError: a peer is gone\n", processes=2)
    assert child.not_before > 101.0
    assert died(b"error: said by a process that is not torchrun's\n", processes=1).deaths == 1


@pytest.fixture
def whole(tmp_path):
    """A supervisor of a run with a monitor and an operator; nothing is started."""
    (tmp_path / "logs").mkdir()
    spec = TrainingRunSpec.model_validate(
        {
            "data": {"train": {"uri": "python-stdlib:"}},
            "training": {"totalSteps": 10},
            "branching": {"mode": "Enforce"},
        }
    )
    return Supervisor(spec, tmp_path)


def test_a_disk_that_is_full_delays_a_start_and_is_said(whole, monkeypatch):
    """Regression: attempts.json could not be written, and the whole run ended in a traceback."""

    def full(name):
        raise OSError(28, "No space left on device", "attempts.json")

    monkeypatch.setattr(whole, "start", full)
    whole.look()
    assert "attempts.json: No space left on device" in whole.trouble
    whole._try_to_start(whole.children["trainer"], 1.0)
    assert "training goes on" not in whole.trouble  # it does not
    assert all(child.not_before > 0 for child in whole.children.values())
    started = []
    monkeypatch.setattr(whole, "start", started.append)
    for child in whole.children.values():
        child.not_before = 0.0
    whole.look()
    assert started == list(whole.children)
    assert whole.trouble == ""


@pytest.mark.parametrize("name", ["monitor", "operator", "rollouts", "proxy"])
def test_a_service_that_dies_again_and_again_does_not_end_the_training(whole, name):
    child = whole.children[name]
    for _ in range(20):
        child.started = 100.0
        whole._died(child, 1, 101.0)
    assert f"{name} exits with 1 again and again" in whole.trouble
    whole.children["trainer"].done = True  # a branch is open, and nobody can end it
    with pytest.raises(RunFailedError, match=name):
        whole._died(child, 1, 101.0)


def test_a_trainer_that_dies_again_and_again_ends_the_run(whole):
    trainer = whole.children["trainer"]

    def die():
        for _ in range(8):
            trainer.started = 100.0
            whole._died(trainer, 1, 101.0)

    with pytest.raises(RunFailedError, match="trainer exits with 1"):
        die()


def lay_a_beat(folder, step):
    path = folder / "beats"
    path.mkdir(exist_ok=True)
    pulse = beats.Pulse(0, 60.0, path)
    pulse.beat(beats.Phase.STEP, step)


def test_what_a_trainer_says_of_its_end_is_told_and_kept_for_the_status(died, tmp_path):
    said = b"ended: NoUsableState: none of the 3 saved states can be restored\nTraceback\n"
    child = died(said, processes=2)
    assert str(child.words) == "NoUsableState: none of the 3 saved states can be restored"
    assert last_end(tmp_path) == str(child.words)


def test_a_trainer_that_dies_again_and_again_is_told_in_its_own_words(whole):
    trainer = whole.children["trainer"]
    (whole.folder / "logs" / "trainer.log").write_text("ended: NoUsableState: damaged\n")
    for _ in range(7):
        trainer.started = 100.0
        whole._died(trainer, 1, 101.0)
    assert whole.trouble == "trainer ended: NoUsableState: damaged; it is started again"
    with pytest.raises(RunFailedError, match=r"^NoUsableState: damaged$") as failed:
        whole._died(trainer, 1, 101.0)
    assert failed.value.code == FAILED


def test_an_end_that_is_not_recorded_ends_the_command_with_a_code_of_its_own(died):
    said = b"ended: EndNotRecorded: step 60 is saved, the end is not on record yet: away\n"
    with pytest.raises(RunFailedError, match="run it again once the store answers") as failed:
        died(said, processes=1, code=4)
    assert failed.value.code == NOT_RECORDED == 4


def test_a_run_that_hangs_at_one_step_again_and_again_ends_and_names_hang_seconds(whole):
    """However long each start lives; one that gets further is started again."""
    trainer = whole.children["trainer"]

    def hang_at(step):
        lay_a_beat(whole.folder, step)
        (seen,) = beats.read(whole.folder / "beats")
        trainer.words = LastWords(
            Ended.HUNG, hang.words([hang.Sighting(seen, 61.0, stopped=False)])
        )
        whole._died(trainer, -9, 10_000.0)

    for step in (5, 5, 6, 7, 7):
        hang_at(step)
    with pytest.raises(RunFailedError, match=r"3 times in a row: Hung.*training\.hangSeconds"):
        hang_at(7)


def test_monitor_and_proxy_get_none_of_the_users_secrets(whole, monkeypatch):
    """As the kernel has it, of real processes."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setattr(Supervisor, "_command", lambda *_: ["sleep", "60"])
    found = {}
    for name in ("monitor", "proxy", "trainer", "operator"):
        whole.start(name)
        process = whole.children[name].process
        environ = Path(f"/proc/{process.pid}/environ")  # empty while the kernel starts the program
        found[name] = until(environ.read_bytes, f"the environment of {name}")
        process.kill()
        process.wait()
    assert {name for name, environment in found.items() if b"canary" in environment} == {
        "trainer",
        "operator",
    }
    assert all(b"FORKCAST_PARENT=" in environment for environment in found.values())


def test_what_a_killed_process_had_begun_to_write_is_gone_at_the_end(whole):
    process = subprocess.Popen(["true"])
    process.wait()
    (whole.folder / "tokens").mkdir()
    left = whole.folder / "tokens" / f".x.bin.{process.pid}.part"
    left.touch()
    whole.stop()
    assert not left.exists()
