"""ARC over two processes clips as one process with all their micro-batches would."""

import json
import subprocess
import sys
from datetime import timedelta

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
        result.skip,
    )


def rank_main(rank, folder):
    """One of two processes; writes what it got."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=90),
    )
    sys.stdout.write(json.dumps(clip(VALUES[rank * 3 : rank * 3 + 3], len(VALUES))))
    dist.destroy_process_group()


@pytest.mark.timeout(200)
def test_two_processes_agree_with_one(tmp_path):
    """Of 1, 2, 3, 80, 4: n = 5, k = floor(2/5 x 4) = 1, C = 4: the mean of 1, -2, 3, 4, 4 is 2."""
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        got = [json.loads(one.communicate(timeout=150)[0]) for one in ranks]
    finally:
        for one in ranks:
            one.kill()
    whole = clip(VALUES, len(VALUES))
    assert got[0] == got[1]
    for gradient, before, after, skip in (whole, got[0]):
        assert gradient == pytest.approx([2.0, 0.0])
        assert (before, after) == pytest.approx((17.2, 2.0))
        assert not skip


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), sys.argv[2])
