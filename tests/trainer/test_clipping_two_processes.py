"""ARC over two processes clips as one process with all their micro-batches would: the policy alone,
and in the engine, where one of the micro-batches is poisoned.
"""

import itertools
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from forkcast_trainer.clipping import ClipContext, make

VALUES = [1.0, -2.0, 3.0, 80.0, 4.0, float("nan")]


def clip(values, count):
    """(gradient, norm before, norm after, skip) of one process that holds ``values``."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    micro = [[torch.tensor([value, 0.0])] for value in values]
    parameter.grad = sum(one[0] for one in micro) / count
    context = ClipContext(0, torch.optim.AdamW([parameter]), micro)
    result = make("ARC", {"maxNorm": 2.0}, micro_batches=count).clip([parameter], context)
    return (
        parameter.grad.tolist(),
        float(result.norm),
        float(result.clipped_norm),
        bool(result.skip),
    )


POISONS = [1.0, 1000.0, float("nan")]
POISON_STEP, POISON_NUMBER = 1, 1


def trained(manifest, folder, rank=0, world=1, *, poison=1.0):
    """(loss, norm before, norm after, skipped) of three steps whose loss is multiplied by ``poison``
    in one micro-batch of one step, and the weights' norm after them.
    """
    from forkcast_trainer.placement import placement
    from forkcast_trainer.step import Engine
    from forkcast_wire.manifest import TrainingRun

    spec = TrainingRun.model_validate(manifest).spec
    engine = Engine(spec, "u", Path(folder), placement(spec, rank, world))
    whole, calls = engine.loss_of, itertools.count()
    own = spec.training.gradient_accumulation_steps * engine.shards // world

    def loss_of(batch):
        step, place = divmod(next(calls), own)
        here = (step, place * world + rank) == (POISON_STEP, POISON_NUMBER)
        return whole(batch) * poison if here else whole(batch)

    engine.loss_of = loss_of
    for _ in range(3):
        engine.step()
    steps = engine.told()
    weights = torch.stack([p.detach().norm() for p in engine.parameters]).norm().item()
    seen = [[one.loss, one.grad_norm, one.grad_norm_clipped, one.skipped] for one in steps]
    return {"steps": seen, "weights": weights}


def rank_main(rank, folder):
    """One of two processes; writes what it got to ``rank-R.json``: its output may hold log lines."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=10),
    )
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    got = {
        "policy": clip(VALUES[rank * 3 : rank * 3 + 3], len(VALUES)),
        "engine": [trained(manifest, folder, rank, 2, poison=factor) for factor in POISONS],
    }
    (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(got))
    dist.destroy_process_group()


def manifest(tiny, processes, accumulation):
    given = tiny(processes=processes, dropout="0", gradientAccumulationSteps=accumulation)
    document = given.document()
    document["spec"]["optimizer"]["clipping"] = {"policy": "ARC", "params": {"maxNorm": "100"}}
    return document


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, tiny):
    """What two gloo processes got, with two micro-batches each: n = 4."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "manifest.json").write_text(json.dumps(manifest(tiny, 2, 2)))
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in range(2)
    ]
    try:
        assert [one.wait() for one in processes] == [0, 0]
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]
    finally:
        for one in processes:
            one.kill()


def test_two_processes_agree_with_one(ranks):
    """Of 1, 2, 3, 80, 4: n = 5, k = floor(2/5 x 4) = 1, C = 4: the mean of 1, -2, 3, 4, 4 is 2."""
    got = [one["policy"] for one in ranks]
    whole = clip(VALUES, len(VALUES))
    assert got[0] == got[1]
    for gradient, before, after, skip in (whole, got[0]):
        assert gradient == pytest.approx([2.0, 0.0])
        assert (before, after) == pytest.approx((17.2, 2.0))
        assert not skip


@pytest.mark.parametrize("number", range(3), ids=["clean", "a thousandfold", "not a number"])
def test_a_poisoned_micro_batch_of_four_is_tamed_alike(ranks, tiny, tmp_path, number):
    """Both ranks see the same norms, equal to those of one process with four micro-batches; the
    step is taken all the same.
    """
    one, two = (rank["engine"][number] for rank in ranks)
    alone = trained(manifest(tiny, 1, 4), tmp_path, poison=POISONS[number])
    assert json.dumps(one) == json.dumps(two)
    for ours, theirs in zip(one["steps"], alone["steps"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, nan_ok=True)
    assert one["weights"] == pytest.approx(alone["weights"], rel=1e-5)
    assert not any(skipped for *_, skipped in one["steps"])
    clean, seen = ranks[0]["engine"][0]["steps"][POISON_STEP], one["steps"][POISON_STEP]
    assert seen[2] < 1.5 * clean[2]  # the clipped norm stays that of the others
    if number == 1:
        assert seen[1] > 50 * clean[1]
    if number == 2:
        assert seen[0] != seen[0]


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), sys.argv[2])
