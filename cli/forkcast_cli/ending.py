"""How `forkcast run` ends, and what it says about saving: pure, from what the trainer has left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Exit codes of `forkcast run`.
COMPLETE, BAD_INPUT, FAILED, NOT_RECORDED, INTERRUPTED = 0, 2, 3, 4, 130


@dataclass(frozen=True, slots=True)
class Ending:
    """words: one line for people; '' for a complete run, which has its own. code: of the command."""

    words: str
    code: int


def stopped(progress: Mapping[str, Any], code: int | None) -> Ending:
    """The end of a run that was interrupted.

    progress: the trainer's last progress.json. code: its exit code, negative for a signal, None if
    it did not run when the run was stopped. Saved is what the trainer says is saved: a launcher of
    several processes hides their exit codes.
    """
    if not progress:
        return Ending("stopped before the first step", INTERRUPTED)
    step, saved = progress.get("step", 0), progress.get("saved_step")
    if saved == step or code == 0 or (step == 0 and saved is None):
        return Ending("stopped; everything is saved", INTERRUPTED)
    newest = f"the newest saved state is step {saved}" if saved is not None else "nothing is saved"
    return Ending(f"stopped at {step}; {newest}: {_reason(progress, code)}", FAILED)


def _reason(progress: Mapping[str, Any], code: int | None) -> str:
    if why := progress.get("save_error"):
        return str(why)
    if code is None:
        return "the trainer was not running; see logs/trainer.log"
    if code < 0:
        return "the trainer was killed before it had saved"
    return f"the trainer ended with {code}; see logs/trainer.log"


def unsaved(progress: Mapping[str, Any]) -> str:
    """What is wrong with saving now, '' if nothing is."""
    why, saved = progress.get("save_error"), progress.get("saved_step")
    if not why:
        return ""
    since = f"not saved since step {saved}" if saved is not None else "nothing is saved yet"
    return f"{since}: {why}"


def of_this_start(progress: Mapping[str, Any], former: int | None) -> dict[str, Any]:
    """The progress without what kept the start before this one from saving or ending. former: its
    attempt.
    """
    if former is None or progress.get("attempt") != former:
        return dict(progress)
    return {**progress, "save_error": "", "end_error": ""}


def news(shown: dict[str, str], now: Mapping[str, str]) -> list[str]:
    """The lines to print about troubles by topic: each once when it begins, once when it is over.

    ``shown`` is brought up to date. A trouble whose reason changes is the same trouble.
    """
    lines = []
    for topic, trouble in now.items():
        if trouble and topic not in shown:
            shown[topic] = trouble
            lines.append(f"{topic}: {trouble}")
        elif not trouble and shown.pop(topic, None) is not None:
            lines.append(f"{topic}: well again")
    return lines
