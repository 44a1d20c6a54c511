"""Several texts with weights: each is seen as often as its weight says, and every process of a run, and
every start of it, sees the same windows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from forkcast_trainer import state
from forkcast_trainer.checkpoint import CheckpointError
from forkcast_trainer.data import tokens
from forkcast_trainer.data.batches import ValidationBatches, Windows, shares
from forkcast_trainer.data.identity import identity_of
from forkcast_trainer.data.mixture import Mixture, MixtureState, Pass, sampler_of
from forkcast_trainer.data.sampler import Sampler
from forkcast_trainer.data.sources import locate
from forkcast_trainer.data.tokens import prepare
from forkcast_trainer.errors import DataError
from forkcast_trainer.placement import placement
from forkcast_trainer.step import Engine
from forkcast_wire.documents import RunInfo, dump
from forkcast_wire.manifest import Data, TrainingRun
from tests.one_step import one_step
from tests.trainer.conftest import text_manifest

LENGTH = 16
GOLDEN = [4, 13, 29, 60, 62, 35, 58, 56, 11, 61, 12, 63]
GOLDEN_STATE = MixtureState(17, 12, (Pass(0, 6), Pass(0, 2), Pass(0, 4)))


@pytest.fixture
def texts(tmp_path):
    """Of 500, 50 and 5 windows; each is of a letter of its own."""
    for name, letter, windows in (("web", "w", 500), ("code", "c", 50), ("few", "f", 5)):
        (tmp_path / f"{name}.txt").write_text(letter * (windows * LENGTH))
    return tmp_path


def mixture(folder, weights, **more):
    sources = [
        {"name": name, "uri": str(folder / f"{name}.txt"), "weight": weight}
        for name, weight in weights.items()
    ]
    given = {"mixture": sources, "sequenceLength": LENGTH, **more}
    given.setdefault("validation", {"source": {"uri": str(folder / "web.txt")}})
    return given


def manifest(folder, weights, total=6, **training):
    document = text_manifest(folder, total, training=training).document()
    document["spec"]["data"] = mixture(folder, weights)
    return TrainingRun.model_validate(document)


def engine(folder, weights, name="t", **training):
    (folder / name).mkdir(exist_ok=True)
    spec = manifest(folder, weights, **training).spec
    return Engine(spec, "u", folder / name, placement(spec))


def test_texts_are_drawn_by_weight_and_a_small_text_begins_again(texts):
    data = Data.model_validate(mixture(texts, {"web": 6, "code": "3.0", "few": 1}))
    found = prepare(data, texts / "t", progress=False)
    windows = Windows(found.train, LENGTH)
    assert windows.counts == [500, 50, 5]
    sampler = sampler_of(windows.counts, windows.weights, 3)
    ids = np.concatenate([sampler.take(8) for _ in range(500)])
    rows = windows.read(ids, LENGTH)
    letters = Counter(bytes(row[:1].astype(np.uint8)).decode() for row in rows)
    # six deviations of a binomial draw
    assert {name: count / 4000 for name, count in letters.items()} == pytest.approx(
        {"w": 0.6, "c": 0.3, "f": 0.1}, abs=0.047
    )
    for row in rows:  # but for the end of the text
        assert len(set(row[row != 256].tolist())) == 1
    web, code, few = sampler.passes()
    assert web == pytest.approx(letters["w"] / 500)
    assert code == pytest.approx(letters["c"] / 50)
    assert few == pytest.approx(letters["f"] / 5)
    few_ids = ids[ids >= 550]
    for first in range(0, len(few_ids) - 4, 5):  # each pass has every window once
        assert sorted(few_ids[first : first + 5].tolist()) == [550, 551, 552, 553, 554]


COUNTS = st.lists(st.tuples(st.integers(1, 90), st.floats(1e-3, 1e3)), min_size=1, max_size=5)


@given(COUNTS, st.integers(0, 2**53 - 1), st.integers(0, 200), st.integers(1, 40))
def test_what_is_drawn_is_named_by_the_state_alone(texts_of, seed, before, after):
    counts, weights = zip(*texts_of, strict=True)
    whole, skipped, ones = (sampler_of(counts, weights, seed) for _ in range(3))
    first = whole.take(before)
    skipped.skip(before)
    assert first.tolist() == [int(ones.take(1)[0]) for _ in range(before)]
    restored = sampler_of(counts, weights, 0)
    restored.state = whole.state
    expected = whole.take(after)
    assert np.array_equal(restored.take(after), expected)
    assert np.array_equal(skipped.take(after), expected)
    assert restored.state == whole.state
    assert all(0 <= one < sum(counts) for one in expected)


def test_the_choice_is_the_one_that_saved_runs_have_begun():
    sampler = Mixture([50, 10, 4], [5, 3, 2], 17)
    assert sampler.take(12).tolist() == GOLDEN
    assert sampler.state == GOLDEN_STATE
    sampler.reorder(18)
    assert sampler.state.drawn == 12


def test_a_single_text_has_the_sampler_it_always_had(texts):
    assert isinstance(sampler_of([5], [2.0], 1), Sampler)
    assert asdict(sampler_of([5], [2.0], 1).state) == {"seed": 1, "epoch": 0, "position": 0}


WEIGHTS = {"web": 2, "few": 1}


def test_a_run_that_is_resumed_sees_what_the_unbroken_run_sees(texts):
    whole, broken = engine(texts, WEIGHTS), engine(texts, WEIGHTS)
    losses = [one_step(whole).loss for _ in range(8)]
    assert [one_step(broken).loss for _ in range(3)] == losses[:3]
    saved = state.snapshot(broken)
    again = engine(texts, WEIGHTS, seed=99)
    state.restore(again, saved)
    assert again.sampler.state == broken.sampler.state
    assert [one_step(again).loss for _ in range(5)] == losses[3:]
    assert again.passes() == whole.passes()
    ends = [state.snapshot(one).tensors for one in (again, whole)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


@pytest.mark.parametrize("other", [{"web": 1, "few": 1}, {"web": 2, "code": 1}, {"web": 1}])
def test_the_state_of_another_mixture_is_refused_unless_it_was_accepted(texts, other):
    mine = engine(texts, WEIGHTS)
    mine.step()
    saved = state.snapshot(mine)
    with pytest.raises(CheckpointError, match=r"of another text: .* its mixture has changed"):
        state.restore(engine(texts, other), saved)
    accepting = engine(texts, other, changedText="Accept")
    if len(other) == len(WEIGHTS):
        state.restore(accepting, saved)
    else:
        with pytest.raises(CheckpointError):
            state.restore(accepting, saved)


def test_a_state_that_does_not_name_its_text_is_restored(make_engine):
    one, other = make_engine(), make_engine()
    one.step()
    saved = state.snapshot(one)
    del saved.meta["text"]
    state.restore(other, saved)
    assert other.sampler.state == one.sampler.state


@pytest.mark.parametrize(
    "change",
    [
        {"passes": [{"epoch": 0, "position": 1}]},
        {"passes": [{"epoch": 0}, {"epoch": 0, "position": 1}]},
        {"drawn": "x"},
        {"drawn": -1},
        {"seed": -1},
    ],
)
def test_a_damaged_state_of_a_mixture_is_refused(texts, change):
    one = engine(texts, WEIGHTS)
    saved = state.snapshot(one)
    saved.meta["sampler"] |= change
    with pytest.raises(CheckpointError, match="another version"):
        state.restore(one, saved)


def test_the_identity_has_weights_names_and_every_text(texts):
    def of(weights, **more):
        data = Data.model_validate(mixture(texts, weights, **more))
        return identity_of(prepare(data, texts / "t", progress=False))

    same = [of({"web": 2, "few": 1}), of({"web": 4, "few": "2"})]
    assert same[0] == same[1]
    others = [of({"web": 1, "few": 1}), of({"few": 1, "web": 2}), of({"web": 2, "code": 1})]
    assert len({one.sha256 for one in (*others, same[0])}) == 4
    held = of({"web": 2, "few": 1}, validation={"fraction": "0.4"})
    assert held.validation_sha256 == held.sha256 == same[0].sha256


def test_two_mixtures_share_the_token_file_of_a_text(texts, monkeypatch):
    prepare(Data.model_validate(mixture(texts, {"web": 1, "few": 1})), texts / "t", progress=False)
    monkeypatch.setattr(tokens, "pieces", None)
    data = Data.model_validate(mixture(texts, {"few": 3, "web": 1}))
    prepare(data, texts / "t", progress=False)
    single = Data.model_validate({"train": {"uri": str(texts / "few.txt")}, "sequenceLength": 8})
    assert locate(single).train[0].name == locate(data).train[0].name


def test_of_a_mixture_each_text_is_held_out_in_part_and_looked_at_by_weight(texts):
    given = mixture(texts, {"web": 1, "code": 1}, validation={"fraction": "0.1"})
    found = prepare(Data.model_validate(given), texts / "t", progress=False)
    assert [text.label for text in found.held] == ["web", "code"]
    assert [text.count for text in found.held] == pytest.approx([801, 81], abs=1)
    held = Windows(found.held, LENGTH)
    assert held.counts == [50, 5]
    rows = np.concatenate(list(ValidationBatches(held, 2, 3)))
    letters = Counter(bytes(row[:1].astype(np.uint8)).decode() for row in rows)
    assert letters == {"w": 3, "c": 3}
    everything = np.concatenate(list(ValidationBatches(held, 2, 1 << 30)))
    assert len(everything) == 10  # as many of each: the smaller one has no more


@pytest.mark.parametrize(
    ("counts", "weights", "most", "expected"),
    [
        ([100], [3.0], 40, [40]),
        ([100], [3.0], 400, [100]),
        ([100, 100], [3.0, 1.0], 40, [30, 10]),
        ([100, 5], [1.0, 1.0], 40, [5, 5]),
        ([100, 5], [1e6, 1e-3], 40, [40, 1]),
    ],
)
def test_windows_stand_for_a_mixture_by_its_weights(counts, weights, most, expected):
    assert shares(counts, weights, most) == expected


def test_a_text_of_a_mixture_that_is_too_short_is_named(texts):
    (texts / "none.txt").write_text("x")
    data = Data.model_validate(mixture(texts, {"web": 1, "none": 1}))
    with pytest.raises(DataError, match=r"^spec\.data\.mixture\[1\]: 2 tokens are fewer"):
        prepare(data, texts / "t", progress=False)
    data = Data.model_validate(mixture(texts, {"web": 1, "gone": 1}))
    with pytest.raises(DataError, match=r"^spec\.data\.mixture\[1\]\.uri: .*gone\.txt does not"):
        prepare(data, texts / "t", progress=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "exactly one"),
        ({"train": {"uri": "a"}, "mixture": [{"name": "a", "uri": "a", "weight": 1}]}, "exactly"),
        ({"mixture": [{"name": "a", "uri": "a", "weight": 0}]}, "greater than 0"),
        ({"mixture": [{"name": "a", "uri": "a"}]}, "required"),
        ({"mixture": [{"name": "a", "uri": "a", "weight": 1}] * 2}, "two sources have the name a"),
        ({"mixture": [{"name": "-", "uri": "a", "weight": 1}]}, "match"),
    ],
)
def test_a_wrong_mixture_is_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        Data.model_validate(given)


def test_a_run_on_a_mixture_tells_how_often_it_has_seen_each_text(texts):
    run = texts / "run"
    run.mkdir()
    (run / "run.json").write_bytes(dump(RunInfo(uid="u", name="t", manifest_digest="")))
    command = [sys.executable, "-m", "forkcast_trainer", "--manifest", "manifest.json"]

    def start(weights, total):
        document = manifest(texts, weights, total).document()
        (run / "manifest.json").write_text(json.dumps(document))
        return subprocess.run(command, cwd=run, capture_output=True, text=True, check=False)

    assert start(WEIGHTS, 4).returncode == 0
    passes = json.loads((run / "progress.json").read_text())["passes"]
    assert sum(passes[name] * of for name, of in (("web", 500), ("few", 5))) == pytest.approx(8)
    refused = start({"web": 3, "few": 1}, 6)
    assert refused.returncode == 2
    (line,) = [one for one in refused.stderr.splitlines() if one.startswith("error: ")]
    assert "spec.data.train: the text, its tokenizer or its mixture has changed" in line
    assert start(WEIGHTS, 6).returncode == 0
