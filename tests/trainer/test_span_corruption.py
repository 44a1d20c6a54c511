"""The spans that T5 learns from: seqio's layout, chosen by the window and the step alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast_trainer import learner, state
from forkcast_trainer.data.tokenizer import open_tokenizer
from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models import Special, build, family_of
from forkcast_trainer.models.t5 import SENTINELS
from forkcast_trainer.objectives.span_corruption import (
    SpanCorruption,
    Steps,
    _key,
    _segments,
)
from forkcast_trainer.placement import placement
from forkcast_trainer.step import Engine
from forkcast_wire.manifest import Model, TrainingRunSpec
from tests.make import little_text

START, END = 1000, 1001
FIRST_SENTINEL = 2000


def objective(sentinels=100):
    return SpanCorruption(Special(START, END, tuple(FIRST_SENTINEL - k for k in range(sentinels))))


def batch_of(rows, length, seed=0, last=0):
    ids = np.random.default_rng(seed).integers(0, 900, (rows, length + 1))
    ids[:, -1] = last
    return torch.from_numpy(ids)


def put_back(inputs, targets):
    """The text, from what the encoder reads and the decoder has to say."""
    spans, span = {}, None
    for one in targets[:-1]:
        if one > END:
            span = spans.setdefault(one, [])
        else:
            span.append(one)
    assert list(spans) == [FIRST_SENTINEL - k for k in range(len(spans))]
    text = []
    for one in inputs[:-1]:
        text += spans.pop(one) if one > END else [one]
    assert not spans
    return text


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(2, 300),
    rows=st.integers(1, 4),
    sentinels=st.sampled_from([1, 5, 100]),
    seed=st.integers(0, 99),
)
def test_inputs_and_targets_together_are_the_text(length, rows, sentinels, seed):
    one, batch = objective(sentinels), batch_of(rows, length, seed)
    example = one.example(batch)
    noise, spans = one.counts(length)
    inputs, read = example.inputs["input_ids"], example.inputs["decoder_input_ids"]
    assert inputs.shape == (rows, length - noise + spans + 1)
    assert example.targets.shape == read.shape == (rows, noise + spans + 1)
    assert (inputs[:, -1] == END).all()
    assert (example.targets[:, -1] == END).all()
    assert (read[:, 0] == START).all()
    assert torch.equal(read[:, 1:], example.targets[:, :-1])
    for row, said, text in zip(inputs.tolist(), example.targets.tolist(), batch, strict=True):
        assert put_back(row, said) == text[:-1].tolist()


@pytest.mark.parametrize(("length", "noise", "spans"), [(512, 77, 26), (114, 17, 6), (16, 2, 1)])
def test_density_and_mean_span_are_those_of_the_paper(length, noise, spans):
    assert objective().counts(length) == (noise, spans)


def test_there_are_never_more_spans_than_sentinels():
    assert objective().counts(4096) == (614, 100)


def test_every_division_into_spans_is_drawn_about_as_often():
    """17 ids in two pieces: the first has any length from 1 to 16."""
    one = objective()
    batch = batch_of(4000, 20)
    hidden, _ = one._hidden(batch)
    noise, _ = one.counts(20)
    assert hidden.sum(1).eq(noise).all()
    assert not hidden[:, 0].any()
    lengths = _segments(_key(batch), 17, 2)[:, 0]
    counts = torch.bincount(lengths, minlength=17)[1:].double()
    expected = len(batch) / 16
    assert counts.sum() == len(batch)
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-squared, 15: p about 1e-4


def test_the_same_window_at_the_same_step_hides_the_same_spans_and_draws_nothing():
    before = torch.get_rng_state()
    one, other = (objective().example(batch_of(3, 64, last=7)) for _ in range(2))
    assert torch.equal(one.targets, other.targets)
    assert torch.equal(torch.get_rng_state(), before)
    alone = objective().example(batch_of(3, 64, last=7)[1:2])
    assert torch.equal(alone.targets[0], one.targets[1])  # whatever else is in the batch


def test_another_step_hides_other_spans_of_the_same_window():
    one, other = (objective().example(batch_of(3, 64, last=step)) for step in (7, 8))
    assert not torch.equal(one.targets, other.targets)


def test_the_step_takes_the_place_of_the_id_that_is_no_text():
    ids = np.arange(10).reshape(2, 5)
    written = Steps().batch(7, ids, None)
    assert written.tolist() == [[0, 1, 2, 3, 7], [5, 6, 7, 8, 7]]
    assert ids[0, 4] == 4


def special_of(model, vocabulary, end, own=(), **config):
    family = family_of(model.architecture)
    module = build(model, vocabulary, 64, 1, end=end)
    return family.special(module, vocabulary, end, own), module


def test_a_tokenizer_without_sentinels_gets_the_ids_above_its_own_counted_down():
    special, module = special_of(Model(architecture="t5-tiny"), 257, 256)
    assert special.sentinels == tuple(range(356, 256, -1))
    assert module.config.vocab_size == 257 + SENTINELS
    assert special.start == special.end == module.config.eos_token_id == 256


def test_a_tokenizers_own_sentinels_are_taken_in_their_order(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"</s>": 0, "<unk>": 1, "word": 2}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    names = [f"<extra_id_{k}>" for k in reversed(range(4))]  # as T5's: the first has the highest id
    PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", additional_special_tokens=names
    ).save_pretrained(tmp_path)
    found = open_tokenizer(str(tmp_path))
    assert found.sentinels == (6, 5, 4, 3)
    special, _ = special_of(Model(architecture="t5-tiny"), 7, 0, found.sentinels)
    assert special.sentinels == (6, 5, 4, 3)
    assert open_tokenizer("bytes").sentinels == ()


@pytest.fixture
def published(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=400, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, eos_token_id=1
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


def test_weights_without_room_for_sentinels_are_refused(published):
    model = Model(architecture="t5-base", init="Pretrained", source=str(published))
    assert special_of(model, 300, 1)[0].sentinels == tuple(range(399, 299, -1))
    assert special_of(model, 301, 1, own=(3, 2))[0].sentinels == (3, 2)
    with pytest.raises(TrainerError, match=r"spec.data.tokenizer: .* only 99 are free for 100"):
        special_of(model, 301, 1)


def engine_of(folder, **model):
    spec = TrainingRunSpec.model_validate(
        {
            "model": {"dtype": "Float32", "device": "Cpu"} | model,
            "data": little_text(32, maxBatches=2),
            "optimizer": {"learningRate": "3e-3"},
            "training": {"totalSteps": 60, "microBatchSize": 2, "gradientAccumulationSteps": 2},
        }
    )
    return Engine(spec, "u", folder, placement(spec))


def test_weights_and_configuration_come_out_of_a_run_as_they_went_in(published, tmp_path):
    import json

    from safetensors.torch import load_file

    from forkcast_trainer import export

    one = engine_of(tmp_path, architecture="t5-base", init="Pretrained", source=str(published))
    assert one.learner.objective.special.start == 0  # as its configuration says
    weights = {name: p.detach() for name, p in one.named.items()}
    export.hugging_face(one.spec, weights, tmp_path / "out")
    given, written = (
        json.loads((folder / "config.json").read_text()) for folder in (published, tmp_path / "out")
    )
    assert given == written
    before, after = (
        load_file(folder / "model.safetensors") for folder in (published, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_resume_and_a_fork_see_the_spans_that_the_run_sees(tmp_path):
    def seen(engine, steps):
        batches = []
        whole = engine.loss_of
        engine.loss_of = lambda batch, **more: (batches.append(batch), whole(batch, **more))[1]
        for _ in range(steps):
            engine.step()
        engine.loss_of = whole
        return [engine.learner.objective.example(batch).targets for batch in batches]

    run = engine_of(tmp_path, architecture="t5-tiny")
    seen(run, 3)
    saved = state.snapshot(run)
    onwards = seen(run, 3)
    assert not torch.equal(onwards[0], onwards[1])
    fork = engine_of(tmp_path, architecture="t5-tiny")
    state.restore(fork, saved)
    assert all(torch.equal(a, b) for a, b in zip(seen(fork, 3), onwards, strict=True))


def test_the_stage_is_this_objectives_alone():
    spec = {"data": little_text(32), "training": {"totalSteps": 1}}
    causal = TrainingRunSpec.model_validate(spec)
    spans = TrainingRunSpec.model_validate(spec | {"model": {"architecture": "t5-tiny"}})
    assert learner.stages(causal) == []
    assert [type(one) for one in learner.stages(spans)] == [Steps]
