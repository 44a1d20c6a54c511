"""The model compiled: it learns what it learns otherwise, and a machine that cannot compile trains on."""

import pytest
import torch

from forkcast_trainer.errors import TrainerError
from forkcast_trainer.placement import Placement, placement
from forkcast_trainer.step import Engine
from tests.one_step import one_step
from tests.trainer.conftest import tiny_manifest

STEPS = 4


def losses(tmp_path, *, compiled):
    spec = tiny_manifest(dropout="0").spec
    cpu = Placement(torch.device("cpu"), torch.float32, compiled=compiled)
    engine = Engine(spec, "u", tmp_path, cpu)
    return [one_step(engine).loss for _ in range(STEPS)]


def with_backend(monkeypatch, backend):
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda one, **_: whole(one, backend=backend))


def test_a_compiled_model_learns_the_same(tmp_path, monkeypatch):
    with_backend(monkeypatch, "aot_eager")  # traced in whole; no minute for a C compiler
    assert losses(tmp_path, compiled=True) == pytest.approx(
        losses(tmp_path, compiled=False), rel=1e-4
    )


def test_where_nothing_can_be_compiled_training_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("Failed to find C compiler")

    with_backend(monkeypatch, broken)
    assert losses(tmp_path, compiled=True) == losses(tmp_path, compiled=False)
    said = capsys.readouterr().out
    assert said.count("train.not_compiled") == 1
    assert "Failed to find C compiler" in said


@pytest.mark.parametrize(("wish", "there", "expected"), [(None, False, False), (True, False, True)])
def test_compiling_is_for_gpus_unless_the_manifest_says_so(wish, there, expected):
    spec = tiny_manifest().spec
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"compile": wish})})
    assert torch.cuda.is_available() is there or pytest.skip("there is a GPU")
    assert placement(spec).compiled is expected


def test_deterministic_is_said_to_torch():
    spec = tiny_manifest(deterministic=True).spec
    try:
        placement(spec)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)  # noqa: FBT003


def test_a_kernel_whose_bits_may_vary_is_refused_by_name(tmp_path):
    spec = tiny_manifest(deterministic=True).spec
    engine = Engine(spec, "u", tmp_path, Placement(torch.device("cpu"), torch.float32))

    def not_so(*_, **__):
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")

    engine.loss_of = not_so
    with pytest.raises(TrainerError, match=r"spec.training.deterministic: cumsum.*; set false"):
        engine.step()
