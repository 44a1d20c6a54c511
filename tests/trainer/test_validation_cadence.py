"""Validation every 1,000 steps, the whole held-out text every 10,000 and at the end."""

import threading

import pytest

from forkcast_trainer.train import TrainingRun
from forkcast_wire.documents import Complete
from forkcast_wire.manifest import TrainingRun as Manifest
from forkcast_wire.store import FolderStore, read_document


@pytest.fixture
def started(run_in, tmp_path):
    """A run in this process, and the evaluations it makes: (steps taken, whether in full)."""

    def make(total, **cadence):
        run = run_in(tmp_path / "r", steps=total)
        document = run.manifest.document()
        document["spec"]["data"]["validation"] = {"maxBatches": 2, **cadence}
        spec = Manifest.model_validate(document).spec
        one = TrainingRun(spec, run.folder, monitor="", attempt=0, stop=threading.Event())
        taken, evaluate = [], one.engine.evaluate

        def noted(*, full=False):
            taken.append((one.engine.position.step, full))
            return evaluate(full=full)

        one.engine.evaluate = noted
        return one, taken

    return make


def test_by_default_every_thousand_steps_and_in_full_every_ten_thousand(started):
    run, taken = started(25_000)
    run.engine.evaluate = lambda *, full=False: taken.append((step, full))
    for step in range(1, 25_001):
        run._validate(step)
    expected = [(step, step % 10_000 == 0) for step in range(1000, 25_000, 1000)]
    assert taken == expected  # the full one of the end is the end's own


def test_a_run_validates_at_its_cadence_and_ends_with_a_full_evaluation(started):
    run, taken = started(24, everySteps=5, fullEverySteps=10)
    assert run.run()
    assert taken == [(5, False), (10, True), (15, False), (20, True), (24, True)]
    done = read_document(FolderStore(run.workdir), Complete, "complete.json")
    assert done.validation_loss == run.engine.evaluate(full=True)
    assert len(run.engine.full_validation) > len(run.engine.validation)


def test_the_last_steps_validation_is_not_taken_twice(started):
    run, taken = started(20, everySteps=10, fullEverySteps=20)
    assert run.run()
    assert taken == [(10, False), (20, True)]
