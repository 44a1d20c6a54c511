"""Models by name: their size, their precision, their seed, and weights from a folder."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from forkcast.parameter_groups import GROUPS, group_of
from forkcast_trainer.data.tokenizer import open_tokenizer
from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models import build, family_of
from forkcast_trainer.models.gpt2 import SIZES
from forkcast_trainer.models.t5 import SENTINELS
from forkcast_wire.manifest import Model, ModelSize
from tests.one_step import one_step

SMALL = ModelSize(layers=2, heads=2, width=32)


@pytest.mark.parametrize("architecture", SIZES)
def test_every_architecture_trains_a_step_and_its_parameters_have_groups(architecture):
    module = build(Model(architecture=architecture, size=SMALL), 257, 16, 1)
    ids = torch.arange(32).reshape(2, 16)
    logits = module(ids).logits
    assert logits.shape == (2, 16, 257)
    logits.float().logsumexp(-1).mean().backward()
    assert all(p.grad is not None and p.dtype is torch.float32 for p in module.parameters())
    groups = {group_of(name) for name, _ in module.named_parameters()}
    assert groups == set(GROUPS) - {"other"}
    assert module.config._attn_implementation == "sdpa"


def test_the_tiny_one_has_the_size_the_quickstart_counts_on():
    assert (
        sum(p.numel() for p in build(Model(architecture="gpt2-tiny"), 257, 64, 1).parameters())
        == 834_432
    )


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("gpt2", 124.4),
        ("gpt2-medium", 354.8),
        ("gpt2-large", 774.0),
        ("gpt2-xl", 1557.6),
        ("t5-small", 60.5),
        ("t5-base", 222.9),
        ("t5-large", 737.7),
    ],
)
def test_published_sizes(name, millions):
    ids = 50257 if name.startswith("gpt2") else 32128 - SENTINELS
    shape = family_of(name).shape(Model(architecture=name), ids, 1024)
    assert shape.parameters / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_weights_of_a_seed_are_those_of_the_library_with_that_seed():
    """So a run of any version continues with the weights it began with."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32}
    torch.manual_seed(5)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=16, **shape))
    ours = build(Model(architecture="gpt2-tiny", size=SMALL), 257, 16, 5)
    own = dict(theirs.named_parameters())
    assert all(torch.equal(p, own.pop(name)) for name, p in ours.named_parameters())
    assert not own


def test_the_seed_names_the_weights_and_leaves_the_callers_generator_alone():
    model = Model(architecture="gpt2-tiny", size=SMALL)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    one, same, other = build(model, 257, 16, 1), build(model, 257, 16, 1), build(model, 257, 16, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.transformer.wte.weight, same.transformer.wte.weight)
    assert not torch.equal(one.transformer.wte.weight, other.transformer.wte.weight)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Model(architecture="gpt5"), "gpt5; one of gpt2-tiny"),
        (Model(size=ModelSize(width=33, heads=2)), "33 is not a multiple of 2 heads"),
        (Model(init="Pretrained", source="/nowhere/at/all"), "no such folder: /nowhere/at/all"),
    ],
)
def test_what_cannot_be_built_is_refused(model, words):
    with pytest.raises(TrainerError, match=words):
        build(model, 257, 16, 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    config = GPT2Config(vocab_size=300, n_positions=32, n_layer=2, n_head=2, n_embd=16)
    model = GPT2LMHeadModel(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder, model


def pretrained(folder, **size):
    return Model(init="Pretrained", source=str(folder), size=ModelSize(**size))


def test_pretrained_weights_load_in_full_precision(saved):
    folder, model = saved
    loaded = build(pretrained(folder, dropout="0.25"), 257, 32, 1)
    assert all(p.dtype is torch.float32 for p in loaded.parameters())
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight.float())
    assert loaded.config._attn_implementation == "sdpa"
    assert loaded.transformer.drop.p == 0.25
    assert loaded.transformer.h[0].mlp.dropout.p == 0.25


@pytest.mark.parametrize(
    ("size", "vocabulary", "positions", "words"),
    [
        ({"layers": 3}, 257, 32, "spec.model.size.layers: 3, but the weights"),
        ({"width": 32}, 257, 32, "spec.model.size.width: 32"),
        ({}, 301, 32, "fewer than the 301"),
        ({}, 257, 33, "32 positions are fewer"),
    ],
)
def test_pretrained_weights_that_do_not_fit_are_refused(saved, size, vocabulary, positions, words):
    with pytest.raises(TrainerError, match=words):
        build(pretrained(saved[0], **size), vocabulary, positions, 1)


def test_broken_weights_are_refused_in_one_line(saved, tmp_path):
    (tmp_path / "config.json").write_text((saved[0] / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"nothing like it")
    with pytest.raises(TrainerError, match=r"spec\.model\.source"):
        build(pretrained(tmp_path), 257, 32, 1)


class _Harmful:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("content", ["pickle", "zip", "nonsense"])
def test_weights_in_a_pickle_are_refused_unread(saved, tmp_path, content):
    (tmp_path / "config.json").write_text((saved[0] / "config.json").read_text())
    weights, left = tmp_path / "pytorch_model.bin", tmp_path / "left"
    match content:
        case "pickle":
            weights.write_bytes(pickle.dumps(_Harmful(left)))
        case "zip":
            torch.save({"transformer.wte.weight": _Harmful(left)}, weights)
        case _:
            weights.write_bytes(b"nothing like it")
    with pytest.raises(TrainerError, match=r"spec\.model\.source: .*safetensors") as caught:
        build(pretrained(tmp_path), 257, 32, 1)
    assert len(str(caught.value).splitlines()) == 1
    assert not left.exists()


def test_code_beside_a_model_or_a_tokenizer_is_not_run(saved, tmp_path):
    folder, left = saved[0], tmp_path / "left"
    here = tmp_path / "model"
    here.mkdir()
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"}
    (here / "config.json").write_text(json.dumps(config))
    (here / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    own = {"auto_map": {"AutoTokenizer": ["code.Own", None]}, "tokenizer_class": "Own"}
    (here / "tokenizer_config.json").write_text(json.dumps(own))
    (here / "code.py").write_text(f"open({str(left)!r}, 'w')\n")
    build(pretrained(here), 257, 32, 1)
    with pytest.raises(TrainerError, match=r"spec\.data\.tokenizer") as caught:
        open_tokenizer(str(here))
    assert len(str(caught.value).splitlines()) == 1
    assert not left.exists()


def test_a_run_starts_from_weights_and_a_tokenizer_in_one_folder(saved, tmp_path):
    """The whole way: manifest to engine; the first loss is the saved model's own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from forkcast_trainer import state
    from forkcast_trainer.placement import placement
    from forkcast_trainer.step import Engine
    from forkcast_wire.manifest import TrainingRunSpec

    folder, _ = saved
    (tmp_path / "text.txt").write_text("some plain words, again and again. " * 200)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel()
    raw.train_from_iterator(
        ["some plain words"], trainers.BpeTrainer(vocab_size=290, special_tokens=["<end>"])
    )
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>").save_pretrained(folder)
    spec = TrainingRunSpec.model_validate(
        {
            "model": {
                "init": "Pretrained",
                "source": str(folder),
                "size": {"dropout": "0"},
                "device": "Cpu",
                "dtype": "Float32",
            },
            "data": {
                "train": {"uri": str(tmp_path / "text.txt")},
                "tokenizer": str(folder),
                "sequenceLength": 16,
            },
            "training": {"totalSteps": 10, "microBatchSize": 2},
        }
    )
    engine = Engine(spec, "u", tmp_path, placement(spec))
    batch = torch.from_numpy(engine.validation[0])
    plain = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    logits = plain(batch[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    assert engine.loss_of(batch).item() == pytest.approx(expected.item(), rel=1e-5)
    losses = [one_step(engine).loss for _ in range(3)]
    other = Engine(spec, "u", tmp_path, placement(spec))
    state.restore(other, state.snapshot(engine))
    assert one_step(other).loss == one_step(engine).loss
    assert losses[0] > 0
