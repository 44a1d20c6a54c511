"""`forkcast checkpoint export`: the weights of a saved state, as other tools load them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from forkcast.records import StateKind
from forkcast_cli.__main__ import app
from forkcast_trainer import checkpoint, models
from forkcast_trainer.checkpoint import Snapshot
from forkcast_trainer.export import FORMATS
from forkcast_wire import keys
from forkcast_wire.documents import RunInfo, dump
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.store import FolderStore
from tests.make import little_text, tiny_run


def said(*arguments, code=0):
    done = CliRunner().invoke(app, ["checkpoint", "export", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of steps 1 and 2 and a ring state of step 3, each of other weights."""
    manifest = TrainingRun.model_validate(
        tiny_run("t", data=little_text(32), training={"totalSteps": 9})
    )
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(manifest.document()))
    (folder / "run.json").write_bytes(dump(RunInfo(uid="u", name="t", manifest_digest="")))
    for step, kind in ((1, StateKind.CHECKPOINT), (2, StateKind.CHECKPOINT), (3, StateKind.RING)):
        named = models.build(manifest.spec.model, 257, 32, seed=step).named_parameters()
        tensors = {f"model.{name}": p.detach() for name, p in named}
        tensors["optimizer.transformer.wte.weight.step"] = torch.tensor(3.0)
        meta = {"run_uid": "u", "epoch": 0, "attempt": 0, "step": step, "loss": 1.0}
        checkpoint.publish(
            FolderStore(folder),
            Snapshot(meta, tensors),
            keys.state(kind, 0, 0, step),
            kind,
            tmp_path / "scratch",
            1,
        )
    return folder, manifest


def expected(manifest, step):
    named = models.build(manifest.spec.model, 257, 32, seed=step).named_parameters()
    return {name: p.detach() for name, p in named}


def equal(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in found)


def test_a_hugging_face_folder_computes_what_the_run_computed(run, tmp_path):
    folder, manifest = run
    assert "ring/e0/a0/000000000003" in said(folder, tmp_path / "hf")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    ours = models.build(manifest.spec.model, 257, 32, seed=3).eval()
    assert equal(dict(model.named_parameters()), dict(ours.named_parameters()))
    ids = torch.arange(32)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, ours(ids).logits)


def with_tokenizer(folder, manifest, tokenizer):
    document = manifest.document()
    document["spec"]["data"]["tokenizer"] = str(tokenizer)
    (folder / "manifest.json").write_text(json.dumps(document))


def test_the_folder_has_the_runs_tokenizer(run, tmp_path):
    folder, manifest = run
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the cat sat on the mat"], 257)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer).save_pretrained(tmp_path / "tok")
    with_tokenizer(folder, manifest, tmp_path / "tok")
    said(folder, tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs("the mat")["input_ids"] == bpe.encode("the mat").ids
    with_tokenizer(folder, manifest, tmp_path / "gone")
    assert "spec.data.tokenizer" in said(folder, tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()
    said(folder, tmp_path / "out", "--as", "safetensors")


def test_safetensors_and_torch_hold_the_weights_of_the_step_alone(run, tmp_path):
    folder, manifest = run
    said(folder, tmp_path / "x.safetensors", "--step", 1, "--as", "safetensors")
    assert equal(load_file(tmp_path / "x.safetensors"), expected(manifest, 1))
    said(folder, tmp_path / "x.pt", "--step", 2, "--as", "torch")
    assert equal(torch.load(tmp_path / "x.pt", weights_only=True), expected(manifest, 2))


def test_what_cannot_be_is_one_line_and_writes_nothing(run, tmp_path):
    folder, _ = run
    out = tmp_path / "out"
    assert "no saved state of step 9; one of 1, 2, 3" in said(folder, out, "--step", 9, code=2)
    assert f"one of {', '.join(FORMATS)}" in said(folder, out, "--as", "gguf", code=2)
    assert "make the folder first" in said(folder, out / "x", code=2)
    assert not out.exists()
    out.write_text("mine")
    assert "exists already" in said(folder, out, code=2)
    assert out.read_text() == "mine"


def test_a_damaged_state_is_not_exported(run, tmp_path):
    folder, _ = run
    path = folder / "ring/e0/a0/000000000003/cp_3.ptz"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    text = said(folder, tmp_path / "out", code=2)
    assert "contents are damaged" in text
    assert "--step" in text
    assert not (tmp_path / "out").exists()
    said(folder, tmp_path / "out", "--step", 2)
