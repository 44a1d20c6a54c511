"""What `forkcast run` says and answers when it is stopped, from what the trainer has left."""

import pytest

from forkcast_cli.ending import news, of_this_start, stopped, unsaved

SAVED = {"state": "stopped", "step": 2920, "saved_step": 2920, "save_error": ""}
REASON = "/ro/store: Read-only file system"


@pytest.mark.parametrize(
    ("progress", "code", "words", "answer"),
    [
        ({}, 0, "stopped before the first step", 130),
        (SAVED, 0, "stopped; everything is saved", 130),
        (SAVED, 1, "stopped; everything is saved", 130),  # a launcher hides its ranks' codes
        ({**SAVED, "saved_step": 2000}, 0, "stopped; everything is saved", 130),  # an old file
        (
            {**SAVED, "saved_step": 2000, "save_error": REASON},
            1,
            f"stopped at 2920; the newest saved state is step 2000: {REASON}",
            3,
        ),
        (
            {**SAVED, "saved_step": None, "save_error": REASON},
            1,
            f"stopped at 2920; nothing is saved: {REASON}",
            3,
        ),
        ({**SAVED, "saved_step": 2000}, -9, "killed before it had saved", 3),
        ({**SAVED, "saved_step": 2000}, None, "the trainer was not running", 3),
        ({**SAVED, "saved_step": 2000}, 1, "the trainer ended with 1", 3),
        ({"step": 2920}, 1, "nothing is saved", 3),  # progress.json of an earlier version
    ],
)
def test_everything_is_saved_only_where_it_is(progress, code, words, answer):
    ending = stopped(progress, code)
    assert words in ending.words
    assert ending.code == answer


def test_failing_saves_are_put_into_words():
    assert unsaved(SAVED) == ""
    failing = {**SAVED, "saved_step": 2000, "save_error": REASON}
    assert unsaved(failing) == f"not saved since step 2000: {REASON}"
    assert unsaved({**failing, "saved_step": None}) == f"nothing is saved yet: {REASON}"


def test_what_kept_the_start_before_from_saving_is_no_trouble_of_this_one():
    failing = {**SAVED, "attempt": 3, "saved_step": 2000, "save_error": REASON}
    assert unsaved(of_this_start(failing, 3)) == ""
    assert unsaved(of_this_start(failing, 2)) == unsaved(failing)
    assert unsaved(of_this_start(failing, None)) == unsaved(failing)
    assert of_this_start({}, None) == {}


def test_a_trouble_is_told_once_when_it_begins_and_once_when_it_ends():
    told = {}
    assert news(told, {"store away": "", "saving": ""}) == []
    assert news(told, {"store away": "refused", "saving": ""}) == ["store away: refused"]
    assert news(told, {"store away": "503", "saving": ""}) == []
    assert news(told, {"store away": "", "saving": "failed"}) == [
        "store away: well again",
        "saving: failed",
    ]
    assert news(told, {"store away": "503", "saving": "failed"}) == ["store away: 503"]
