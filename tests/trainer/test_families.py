"""What every family of the model shelf gives, whatever it is."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from forkcast.parameter_groups import GROUPS
from forkcast_cli.shapes import plan_model
from forkcast_trainer import export, internals, learner, state
from forkcast_trainer.course import Course
from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models import build, families, family_of
from forkcast_trainer.optimizers import described
from forkcast_trainer.placement import placement
from forkcast_trainer.step import Engine
from forkcast_wire.manifest import Model, Optimizer, TrainingRunSpec
from tests.make import little_text
from tests.one_step import one_step

TOY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": None,
}
CONFIGS = {
    "llama": LlamaConfig(**TOY),
    "llama-biased": LlamaConfig(**TOY, attention_bias=True, mlp_bias=True, attention_dropout=0.1),
    "qwen2": Qwen2Config(**TOY, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**TOY | {"head_dim": 16}),
    "gemma2": Gemma2Config(**TOY, query_pre_attn_scalar=8),  # its logits are capped
    "gpt2": GPT2Config(vocab_size=300, n_positions=64, n_layer=2, n_head=2, n_embd=32),
}
SMALL = {"layers": 2, "heads": 2, "width": 32}
#: Of every family at least one: architecture, or config of an `hf:` folder.
CASES = ["gpt2-tiny", "t5-tiny", *(f"hf:{name}" for name in CONFIGS)]


@pytest.fixture(scope="module")
def spec_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")

    def make(case, **more):
        model = {"architecture": case, "dtype": "Float32", "device": "Cpu", "size": SMALL}
        if case.startswith("hf:"):
            name = case.removeprefix("hf:")
            CONFIGS[name].save_pretrained(folder / name)
            model |= {"architecture": f"hf:{folder / name}", "size": {}}
        return TrainingRunSpec.model_validate(
            {
                "model": model | more.pop("model", {}),
                "data": little_text(16, maxBatches=2),
                "optimizer": {"learningRate": "3e-3", "schedule": {"warmupSteps": 1}},
                "training": {"totalSteps": 60, "microBatchSize": 4, **more.pop("training", {})},
                "parallelism": {"processesPerNode": 1},
                **more,
            }
        )

    return make


@pytest.fixture
def engine_of(spec_of, tmp_path):
    def make(case, **more):
        spec = spec_of(case, **more)
        return Engine(spec, "u", tmp_path, placement(spec))

    return make


def make(spec, vocabulary=257):
    return learner.make(spec, vocabulary)


def test_every_family_is_in_this_suite(spec_of):
    assert {family_of(spec_of(case).model.architecture) for case in CASES} == set(families())


@pytest.mark.parametrize("case", CASES)
def test_the_seed_names_the_weights_and_draws_from_no_other_generator(spec_of, case):
    torch.manual_seed(9)
    before = torch.get_rng_state()
    one, same, other = (
        dict(make(spec_of(case, training={"seed": seed})).module.named_parameters())
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.dtype is torch.float32 and torch.equal(p, same[n]) for n, p in one.items())
    assert any(not torch.equal(p, other[n]) for n, p in one.items())


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_that_of_the_modules_own_logits_with_every_gradient(spec_of, case):
    one = make(spec_of(case))
    one.module.eval()
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 257, (3, 17)))
    ours = one(batch).value
    ours.backward()
    grads = {name: p.grad.clone() for name, p in one.module.named_parameters()}
    one.module.zero_grad()
    example = one.objective.example(batch)
    logits = one.module(**example.inputs).logits
    theirs = functional.cross_entropy(logits.flatten(0, 1), example.targets.flatten())
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, p in one.module.named_parameters():
        assert torch.allclose(p.grad, grads[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("case", CASES)
def test_its_parameters_have_a_part_each_and_the_decayed_are_matrices(spec_of, case):
    one = make(spec_of(case))
    parts = {one.family.part(name) for name, _ in one.module.named_parameters()}
    assert parts == set(GROUPS) - {"other"}
    for name, p in one.module.named_parameters():
        assert one.family.decays(name, p) == (p.ndim > 1), name
        assert one.family.part(name) != "norm" or p.ndim == 1


@pytest.mark.parametrize("case", CASES)
def test_its_taps_show_attention_and_activations_and_change_nothing(spec_of, case, capsys):
    one = make(spec_of(case))
    before = torch.get_rng_state()
    if case == "hf:gemma2":  # its attention is its own
        assert not internals.sample(one, torch.arange(16))
        assert not internals.sample(one, torch.arange(16))
        assert capsys.readouterr().out.count("train.fewer_statistics") == 1
        return
    values = internals.sample(one, torch.arange(16))
    seen = internals.read({name: float(value) for name, value in values.items()})
    layers = one.module.config.num_hidden_layers * (2 if case == "t5-tiny" else 1)
    assert len(seen.attention_entropy) == len(seen.activation_sd) == layers
    assert all(0.5 < share <= 1.000001 for share in seen.attention_entropy)  # untrained: about 1
    assert all(value > 0 for value in seen.activation_sd)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.module.training
    assert one.taps.head is one.module.get_output_embeddings()


@pytest.mark.parametrize("case", CASES)
def test_the_plan_counts_what_is_built(spec_of, case):
    spec = spec_of(case)
    planned, one = plan_model(spec), make(spec)
    built = sum(p.numel() for p in one.module.parameters())
    if case == "hf:gemma2":
        assert planned is None  # not a kind that is counted
    else:
        assert planned.parameters == built
        parameters = described(one.module, one.family)
        matrices = sum(each.tensor.numel() for each in parameters if each.matrix)
        with_muon = plan_model(spec.model_copy(update={"optimizer": Optimizer(name="Muon")}))
        assert planned.state_bytes == 12 * built
        assert with_muon.state_bytes == 12 * built - 4 * matrices


@pytest.mark.parametrize("case", CASES)
def test_it_trains_resumes_to_the_bit_and_exports_what_the_library_loads(
    engine_of, spec_of, case, tmp_path
):
    one = engine_of(case)
    rows = [one_step(one) for _ in range(20)]
    losses = [row.loss for row in rows]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.3
    assert bool(rows[0].attention_entropy) == (case != "hf:gemma2")
    saved = state.snapshot(one)
    held = one.evaluate()
    onwards = [one_step(one).loss for _ in range(3)]
    other = engine_of(case)
    state.restore(other, saved)
    assert other.evaluate() == held
    assert [one_step(other).loss for _ in range(3)] == onwards

    weights = {n[6:]: t for n, t in saved.tensors.items() if n.startswith("model.")}
    export.hugging_face(one.spec, weights, tmp_path / "out")
    kind = AutoModelForSeq2SeqLM if case == "t5-tiny" else AutoModelForCausalLM
    loaded = kind.from_pretrained(tmp_path / "out").eval()
    state.restore(one, saved)
    one.module.eval()
    inputs = one.learner.objective.look(torch.arange(16))
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, one.module(**inputs).logits)
    if case.startswith("hf:"):  # its configuration comes out as it went in
        given = json.loads((Path(spec_of(case).model.architecture[3:]) / "config.json").read_text())
        given |= {"architectures": [type(loaded).__name__]}
        written = json.loads((tmp_path / "out" / "config.json").read_text())
        ours = {"dtype", "transformers_version"}
        assert {k: v for k, v in written.items() if k not in ours} == {
            k: v for k, v in given.items() if k not in ours
        }


@pytest.mark.parametrize("case", CASES)
def test_checkpointing_and_half_precision_train_it_too(engine_of, case):
    def losses(**model):
        engine = engine_of(case, model=model)  # which seeds the generators that dropout draws from
        return [one_step(engine).loss for _ in range(2)]

    plain = losses()
    assert losses(gradientCheckpointing=True) == pytest.approx(plain, rel=1e-5)
    assert losses(dtype="BFloat16") == pytest.approx(plain, rel=2e-2)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "config.json"),
        ({"model_type": "nonsense"}, "nonsense"),
        ({"vocab_size": 5}, "model_type"),
        ({"model_type": "t5"}, "T5Config"),
        ({"model_type": "bert", "num_hidden_layers": 1}, "sees the ids that it should predict"),
        ({"model_type": "llama"} | TOY | {"vocab_size": 100}, "100 ids .* fewer than the 257"),
        ({"model_type": "llama"} | TOY | {"max_position_embeddings": 8}, "8 positions are fewer"),
        ({"model_type": "llama"} | TOY | {"hidden_size": "wide"}, "hidden_size"),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}},
            "trust_remote_code|custom code",
        ),
    ],
)
def test_a_folder_that_is_no_causal_model_is_refused_in_one_line(tmp_path, document, words):
    left = tmp_path / "left"
    if document is not None:
        (tmp_path / "config.json").write_text(json.dumps(document))
    (tmp_path / "code.py").write_text(f"open({str(left)!r}, 'w')\n")
    with pytest.raises(TrainerError, match=rf"^spec\.model\.architecture: .*({words})") as caught:
        build(Model(architecture=f"hf:{tmp_path}"), 257, 16, 1)
    assert len(str(caught.value).splitlines()) == 1
    assert not left.exists()


def test_an_id_that_nobody_has_and_a_folder_that_is_not_there_are_refused(monkeypatch):
    with pytest.raises(TrainerError, match=r"spec\.model\.architecture: no such folder: /nowhere"):
        build(Model(architecture="hf:/nowhere/at/all"), 257, 16, 1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        TrainerError, match=r"spec\.model\.architecture: nobody/nothing: "
    ) as caught:
        build(Model(architecture="hf:nobody/nothing"), 257, 16, 1)
    assert len(str(caught.value).splitlines()) == 1


def test_sizes_of_a_config_are_refused_and_its_dropout_is_changed(spec_of):
    architecture = spec_of("hf:llama").model.architecture
    with pytest.raises(TrainerError, match=r"spec\.model\.size\.width: .* config.json says it"):
        build(Model(architecture=architecture, size={"width": 64}), 257, 16, 1)
    module = build(Model(architecture=architecture, size={"dropout": "0.25"}), 257, 16, 1)
    assert module.config.attention_dropout == 0.25


@pytest.mark.parametrize("case", ["llama", "qwen3"])
def test_pretrained_weights_are_taken_from_beside_the_config(tmp_path, case):
    theirs = AutoModelForCausalLM.from_config(CONFIGS[case])
    theirs.save_pretrained(tmp_path)
    ours = build(Model(architecture=f"hf:{tmp_path}", init="Pretrained"), 257, 16, 1)
    own = dict(theirs.named_parameters())
    assert all(torch.equal(p, own.pop(name)) for name, p in ours.named_parameters())
    assert not own


@pytest.mark.parametrize("case", ["t5-tiny", "hf:llama"])
def test_a_rollout_of_it_takes_the_steps_that_the_run_takes(engine_of, case):
    """A branch's control: another process's engine, from the saved state, measured by the course."""
    run = engine_of(case)
    for _ in range(2):
        run.step()
    saved = state.snapshot(run)
    onwards = [one_step(run).loss for _ in range(3)]
    rollout = engine_of(case)
    state.restore(rollout, saved)
    course = Course(rollout)
    course.run_to(5)
    assert [row.loss for row in course.rows] == onwards


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        ({"architecture": "hf:a/b"}, True),
        ({"architecture": "hf:a/b", "init": "Pretrained"}, True),
        ({"architecture": "hf:a/b", "init": "Pretrained", "source": "a/b"}, False),
        ({"architecture": "hf:a/b", "source": "a/b"}, False),
        ({"init": "Pretrained"}, False),
        ({"init": "Pretrained", "source": "a/b"}, True),
        ({"source": "a/b"}, False),
    ],
)
def test_a_source_is_given_where_the_architecture_names_none(model, taken):
    """The manifest's validator and the cluster's rule alike."""
    import celpy

    rule = next(one for one in Model.RULES if one.field == ".source")
    environment = celpy.Environment()
    program = environment.program(environment.compile(rule.expression))
    whole = {"architecture": "gpt2", "init": "FromScratch"} | model  # as a cluster defaults it
    assert bool(program.evaluate({"self": celpy.json_to_cel(whole)})) == taken
    if taken:
        Model.model_validate(model)
    else:
        with pytest.raises(ValueError, match="source: is set exactly when init is Pretrained and"):
            Model.model_validate(model)


def test_a_folder_is_found_beside_the_manifest(tmp_path):
    from forkcast_wire.manifest_file import ManifestError, load_manifest
    from tests.make import tiny_run

    CONFIGS["llama"].save_pretrained(tmp_path / "own")
    document = tiny_run("t", data=little_text(16), training={"totalSteps": 1})
    document["spec"]["model"] = {"architecture": "hf:own"}
    (tmp_path / "m.yaml").write_text(json.dumps(document))
    assert load_manifest(tmp_path / "m.yaml").spec.model.architecture == f"hf:{tmp_path / 'own'}"
    document["spec"]["model"] = {"architecture": "hf:./other"}
    (tmp_path / "m.yaml").write_text(json.dumps(document))
    with pytest.raises(ManifestError, match=r"spec\.model\.architecture: no such folder: "):
        load_manifest(tmp_path / "m.yaml")


@pytest.mark.parametrize(
    ("case", "checkpointing"),
    [("gpt2-tiny", False), ("gpt2-tiny", True), ("t5-tiny", False), ("hf:llama", False)],
)
def test_compiled_it_trains_as_it_does_eagerly(engine_of, monkeypatch, case, checkpointing):
    """Traced, and its backward pass too; what the tracer gives is run without a C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))

    def losses(**model):
        engine = engine_of(case, model=model, training={"zLoss": "1e-3"})
        return [*(one_step(engine).loss for _ in range(2)), engine.evaluate()]

    plain = losses()
    assert losses(compile=True, gradientCheckpointing=checkpointing) == pytest.approx(
        plain, rel=1e-4
    )
