"""What a manifest takes is known beforehand, for every shape of the shelf and every tokenizer that
stands in a folder, without loading a model.
"""

import subprocess
import sys

import pytest

from forkcast_cli.plan import lines, plan
from forkcast_cli.shapes import plan_model, vocabulary_size
from forkcast_trainer.data.tokenizer import open_tokenizer
from forkcast_trainer.models import build, families
from forkcast_trainer.staging import BUFFERS
from forkcast_wire.manifest import Data, TextSource, TrainingRun
from forkcast_wire.manifest_file import ManifestError

TEXT = ["some plain words, again and again"] * 10


def manifest(tokenizer="bytes", length=1024, schedule=None, steps=None, **model):
    return TrainingRun.model_validate(
        {
            "apiVersion": "forkcast.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": "t"},
            "spec": {
                "model": model,
                "data": {
                    "train": {"uri": "python-stdlib:"},
                    "tokenizer": str(tokenizer),
                    "sequenceLength": length,
                },
                "optimizer": {"learningRate": "1e-3", "schedule": schedule or {}},
                "training": {"totalSteps": 1000} | ({"scheduleSteps": steps} if steps else {}),
            },
        }
    )


def gpt2_layout(folder, special=("<|endoftext|>",)):
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir()
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXT, vocab_size=270, special_tokens=list(special))
    bpe.save_model(str(folder))
    return folder


def hugging_face(folder, kind, eos="<end>"):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [eos, "<unk>"] if eos else ["<unk>"]
    raw, trainer = {
        "BPE": (models.BPE(), trainers.BpeTrainer(vocab_size=60, special_tokens=special)),
        "Unigram": (
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=40, special_tokens=special, unk_token="<unk>"),
        ),
        "WordLevel": (models.WordLevel(), trainers.WordLevelTrainer(special_tokens=special)),
    }[kind]
    tokenizer = Tokenizer(raw)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXT, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "make",
    [
        lambda _: "bytes",
        gpt2_layout,
        lambda folder: gpt2_layout(folder, special=()),
        lambda folder: hugging_face(folder, "BPE"),
        lambda folder: hugging_face(folder, "BPE", eos=None),
        lambda folder: hugging_face(folder, "Unigram"),
        lambda folder: hugging_face(folder, "WordLevel"),
    ],
)
def test_a_tokenizers_size_is_told_without_loading_it(tmp_path, make):
    uri = str(make(tmp_path / "tok"))
    data = Data(train=TextSource(uri="x"), tokenizer=uri)
    assert vocabulary_size(data) == open_tokenizer(uri).vocabulary_size


@pytest.mark.parametrize("text", ["", "[]", '{"model": {}}', '{"model": {"vocab": [], "x": 1}}'])
def test_a_tokenizer_that_cannot_be_told_is_not_guessed(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    assert vocabulary_size(Data(train=TextSource(uri="x"), tokenizer=str(tmp_path))) is None
    assert dict(lines(plan(manifest(tmp_path))))["model"].startswith("its shape is known only")


@pytest.mark.parametrize(
    ("name", "millions"), [("gpt2", 124.44), ("gpt2-medium", 354.82), ("gpt2-large", 774.03)]
)
def test_the_published_models_have_their_published_sizes(name, millions):
    planned = plan(manifest("gpt2", architecture=name))
    assert planned.model.parameters / 1e6 == pytest.approx(millions, abs=0.005)
    assert planned.model.state_bytes == 12 * planned.model.parameters


@pytest.mark.parametrize(("name", "bits"), [("AdamW8bit", 17), ("Muon", 32)])
def test_the_plan_counts_what_the_optimizer_keeps(name, bits):
    adamw = plan_model(manifest("gpt2", architecture="gpt2").spec)
    document = manifest("gpt2", architecture="gpt2").document()
    document["spec"]["optimizer"]["name"] = name
    planned = plan_model(TrainingRun.model_validate(document).spec)
    matrices = 12 * 12 * 768**2
    assert adamw.state_bytes - planned.state_bytes == matrices * (64 - bits) // 8
    assert adamw.memory_bytes - planned.memory_bytes == matrices * (64 - bits) // 8


@pytest.mark.parametrize("size", [{"heads": 3, "width": 16}, {"heads": 5}, {"width": 70}])
def test_a_shape_that_no_trainer_builds_is_refused_by_the_plan(size):
    given = manifest(size=size)
    with pytest.raises(
        ManifestError, match=r"spec.model.size.width: .* not a multiple of \d+ heads"
    ):
        plan(given)


@pytest.mark.parametrize(
    "name", [name for one in families() for name in one.names if ":" not in name]
)
def test_every_shape_of_the_shelf_is_planned_with_bytes_and_with_a_folder(tmp_path, name):
    for tokenizer in ("bytes", gpt2_layout(tmp_path / "tok")):
        said = dict(lines(plan(manifest(tokenizer, architecture=name))))
        assert "parameters" in said["model"]
        assert {"training", "memory", "checkpoints", "a branch"} <= said.keys()


def test_pretrained_weights_are_planned_from_their_own_config(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=300, n_positions=32, n_layer=2, n_head=2, n_embd=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    given = manifest(length=32, init="Pretrained", source=str(tmp_path))
    built = build(given.spec.model, 257, 32, 1)
    assert plan_model(given.spec).parameters == sum(p.numel() for p in built.parameters())


def test_a_published_name_is_known_and_another_is_not_guessed():
    known = plan_model(manifest("gpt2", init="Pretrained", source="gpt2-medium").spec)
    assert (known.layers, known.positions, known.vocabulary) == (24, 1024, 50257)
    assert plan_model(manifest("gpt2", init="Pretrained", source="some/other").spec) is None


def test_states_that_are_kept_for_life_are_counted():
    def planned(**checkpoint):
        document = manifest().document()
        document["spec"]["checkpoint"] = checkpoint
        return plan(TrainingRun.model_validate(document))

    default, none = planned(), planned(logSpacedFrom=0)
    assert (default.kept_for_life, none.kept_for_life) == (6, 0)  # 0, 50, 100, 200, 400, 800
    assert default.store_bytes - none.store_bytes == 6 * default.model.state_bytes
    assert default.copy_bytes == BUFFERS * default.model.state_bytes


def test_a_model_that_no_trainer_has_is_refused_by_the_plan():
    with pytest.raises(ManifestError, match=r"spec.model.architecture: unknown: gpt5; one of gpt2"):
        plan(manifest(architecture="gpt5"))


def test_planning_loads_no_torch():
    program = "import sys, forkcast_cli.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("schedule", "steps", "said"),
    [
        ({}, None, "up to 0.001 over 100 steps, cosine to 0 at step 999"),
        ({"warmupSteps": 0}, None, "from 0.001, cosine to 0 at step 999"),
        ({"type": "Linear"}, None, "up to 0.001 over 100 steps, linear to 0 at step 999"),
        ({"type": "WSD"}, None, "0.001 to step 799, down to 0 over 200 steps, at step 999"),
        (
            {"type": "WSD", "decaySteps": 50, "minLearningRate": "1e-4"},
            400,
            "0.001 to step 349, down to 0.0001 over 50 steps, at step 399; steps 400 to 999 keep",
        ),
        ({"type": "Constant"}, None, "up to 0.001 over 100 steps, then 0.001"),
        (
            {"warmupSteps": 5000},
            None,
            "the peak 0.001 is never reached, the highest rate is 0.0002",
        ),
        ({}, 50, "longer than the schedule of 50 steps: then at once 0"),
        ({}, 400, "at step 399; steps 400 to 999 keep 0, so they change no weight"),
        ({"minLearningRate": "1e-4"}, 400, "steps 400 to 999 keep 0.0001; spec.train"),
        ({}, 2000, "at step 1,999, beyond the run: its last step has 0.0005"),
    ],
)
def test_the_course_of_the_learning_rate_is_planned(schedule, steps, said):
    assert said in dict(lines(plan(manifest(schedule=schedule, steps=steps))))["learning rate"]


def test_the_text_is_counted_without_being_read(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 3000)
    (tmp_path / ".hidden.txt").write_text("x" * 3000)
    document = manifest().document()
    for most, tokens in ((0, 6000), (1000, 2000)):
        document["spec"]["data"]["train"] = {"uri": str(tmp_path), "maxBytes": most}
        planned = plan(TrainingRun.model_validate(document))
        assert (planned.text_files, planned.text_bytes) == (1, 3000)
        assert planned.token_bytes == tokens
        assert any(what == "text" and "1 files" in said for what, said in lines(planned))
    document["spec"]["data"]["train"] = {"uri": str(tmp_path / "gone")}
    assert plan(TrainingRun.model_validate(document)).text_bytes is None
