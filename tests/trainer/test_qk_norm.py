"""Queries and keys that are normed: what it does to logits, and that a state says so."""

import pytest
import torch

from forkcast_cli.shapes import plan_model
from forkcast_trainer import export, internals, state
from forkcast_trainer.checkpoint import CheckpointError
from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models import build, family_for
from forkcast_trainer.placement import placement
from forkcast_trainer.step import Engine
from forkcast_wire.manifest import Model, TrainingRunSpec
from tests.make import little_text
from tests.one_step import one_step

SMALL = {"layers": 2, "heads": 2, "width": 32, "dropout": "0"}


@pytest.fixture
def engine_of(tmp_path):
    def make(*, qk_norm=True, z_loss=0, **model):
        spec = TrainingRunSpec.model_validate(
            {
                "model": {
                    "architecture": "gpt2-tiny",
                    "size": SMALL,
                    "qkNorm": qk_norm,
                    "dtype": "Float32",
                    "device": "Cpu",
                    **model,
                },
                "data": little_text(16, maxBatches=2),
                "optimizer": {"learningRate": "3e-3", "schedule": {"warmupSteps": 1}},
                "training": {"totalSteps": 60, "microBatchSize": 4, "zLoss": z_loss},
            }
        )
        return Engine(spec, "u", tmp_path, placement(spec))

    return make


def test_it_is_layer_norm_of_each_head_and_all_other_weights_are_the_same():
    plain, normed = (
        build(Model(architecture="gpt2-tiny", size=SMALL, qk_norm=one), 257, 16, 1)
        for one in (False, True)
    )
    own = dict(normed.named_parameters())
    assert all(torch.equal(p, own.pop(name)) for name, p in plain.named_parameters())
    assert {name.split(".", 3)[3] for name in own} == {
        "attn.c_attn.q_norm.weight",
        "attn.c_attn.k_norm.weight",
    }
    x = torch.randn(3, 5, 32)
    before, after = (one.transformer.h[0].attn.c_attn(x) for one in (plain, normed))
    q, k, v = (one.view(3, 5, 2, 16) for one in before.split(32, -1))
    expected = [torch.nn.functional.layer_norm(one, (16,)) for one in (q, k)]
    assert torch.allclose(after, torch.cat([*(e.flatten(2) for e in expected), v.flatten(2)], -1))


def test_logits_do_not_grow_with_the_matrices(engine_of):
    for qk_norm, grows in ((False, True), (True, False)):
        learner = engine_of(qk_norm=qk_norm).learner
        before = internals.sample(learner, torch.arange(16))["attention_logit_max"].item()
        with torch.no_grad():
            for block in learner.module.transformer.h:
                block.attn.c_attn.weight.mul_(1000)
        after = internals.sample(learner, torch.arange(16))["attention_logit_max"].item()
        assert (after > 1000 * before) == grows
        assert qk_norm == (after <= 16**0.5 + 1e-3)  # |q| |k| / sqrt(d) = sqrt(d)


@pytest.mark.parametrize("dtype", ["Float32", "BFloat16", "Float16"])
def test_it_trains_and_resumes_to_the_bit(engine_of, dtype):
    one = engine_of(dtype=dtype)
    losses = [one_step(one).loss for _ in range(15)]
    assert losses[-1] < losses[0] - 0.3
    saved = state.snapshot(one)
    assert saved.meta["model"] == {"qkNorm": True}
    onwards = [one_step(one).loss for _ in range(2)]
    other = engine_of(dtype=dtype)
    state.restore(other, saved)
    assert [one_step(other).loss for _ in range(2)] == onwards


@pytest.mark.parametrize(
    ("saved_with", "resumed_with", "words"),
    [
        (
            {"qk_norm": True},
            {"qk_norm": False},
            "trained with qkNorm: true, the manifest says false",
        ),
        (
            {"qk_norm": False},
            {"qk_norm": True},
            "trained with qkNorm: false, the manifest says true",
        ),
        ({"z_loss": "1e-4"}, {}, "trained with zLoss: 0.0001, the manifest says false"),
    ],
)
def test_a_state_that_was_trained_in_another_way_is_refused(
    engine_of, saved_with, resumed_with, words
):
    saved = state.snapshot(engine_of(**saved_with))
    other = engine_of(**resumed_with)
    with pytest.raises(CheckpointError, match=words):
        state.restore(other, saved)


def test_a_plain_state_says_nothing_so_that_an_older_version_reads_it(engine_of):
    assert "model" not in state.snapshot(engine_of(qk_norm=False)).meta


def test_z_loss_changes_the_weights_and_not_the_loss_that_is_reported(engine_of):
    plain, pulled = engine_of(qk_norm=False), engine_of(qk_norm=False, z_loss="1")
    assert one_step(plain).loss == one_step(pulled).loss
    assert any(
        not torch.equal(p, q) for p, q in zip(plain.parameters, pulled.parameters, strict=True)
    )
    sizes = []
    for engine in (plain, pulled):
        for _ in range(40):
            engine.step()
        batch = torch.from_numpy(engine.validation[0])
        sizes.append(engine.learner(batch).log_z.abs().mean())
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"architecture": "t5-tiny"}, "of the gpt2 family alone"),
        ({"architecture": "hf:a/b"}, "of the gpt2 family alone"),
        ({"init": "Pretrained", "source": "gpt2"}, "pretrained weights have none"),
    ],
)
def test_models_that_have_none_are_refused(model, words):
    with pytest.raises(TrainerError, match=rf"spec\.model\.qkNorm: {words}; set false"):
        family_for(Model.model_validate({**model, "qkNorm": True}))


def test_it_is_planned_and_is_no_layout_of_hugging_faces(engine_of, tmp_path):
    one = engine_of()
    assert plan_model(one.spec).parameters == sum(p.numel() for p in one.parameters)
    weights = {name: p.detach() for name, p in one.named.items()}
    with pytest.raises(
        CheckpointError, match="a model with qkNorm has no layout of Hugging Face's"
    ):
        export.hugging_face(one.spec, weights, tmp_path / "out")
