"""The names of everything that is stored, in one place. Keys are built here, never parsed from
users; all are relative to the run's store (for a folder: the work directory).
"""

from __future__ import annotations

import re

from forkcast.records import StateKind, Trigger

CATALOGUE = "catalogue.json"
RUN = "run.json"
COMPLETE = "complete.json"
TEXT = "text.json"
TEXT_COMMITS = "text-commits.json"
LINEAGE_PREFIX = "lineage/"
ATTEMPTS_PREFIX = "attempts/"
SUPPRESSED_PREFIX = "suppressed/"
HISTORY_PREFIX = "history/"
TOKENS_PREFIX = "tokens/"
BRANCHES_PREFIX = "branches/"
ROLLOUTS_PREFIX = "rollouts/"
#: Everywhere a saved state may stand, of the main run or of a rollout.
STATE_PREFIXES = ("checkpoints/", "ring/", ROLLOUTS_PREFIX)


def attempt(number: int) -> str:
    """The create-only record that a start of the trainer took this number."""
    return f"{ATTEMPTS_PREFIX}{number:06d}.json"


def attempt_of(key: str) -> int:
    """The number in a key of `attempt`."""
    return int(key.removeprefix(ATTEMPTS_PREFIX).removesuffix(".json"))


def state_prefix(kind: StateKind) -> str:
    """Where saved states of the main run stand: ``checkpoints/`` or ``ring/``."""
    return {StateKind.CHECKPOINT: "checkpoints/", StateKind.RING: "ring/"}[kind]


def state(kind: StateKind, epoch: int, attempt: int, step: int) -> str:
    """The folder of one saved state of the main run, without a trailing slash."""
    return f"{state_prefix(kind)}e{epoch}/a{attempt}/{step:012d}"


def is_first(folder: str) -> bool:
    """Whether the folder of a state is that of step 0: losing it loses no training."""
    return not folder.rpartition("/")[2].strip("0")


def ptz(folder: str, step: int) -> str:
    """The container in a state's folder."""
    return f"{folder}/cp_{step}.ptz"


def state_manifest(folder: str) -> str:
    """The manifest in a state's folder, written last: without it the state does not exist."""
    return f"{folder}/manifest.json"


def state_gap(folder: str) -> str:
    """What the history lacked when the state was published, see documents.HistoryGap; no such
    object, no gap.
    """
    return f"{folder}/history-gap.json"


def branch(trigger_id: str) -> str:
    """The folder of a branch's records, e.g. ``branches/e0-t120``."""
    return f"{BRANCHES_PREFIX}{trigger_id}"


def branch_file(trigger_id: str, name: str) -> str:
    """A record of a branch: branch, phase, bases, draft, decision, outcome (all .json)."""
    return f"{branch(trigger_id)}/{name}.json"


_BRANCH_FILE = re.compile(rf"{BRANCHES_PREFIX}([^/]+)/([a-z]+)\.json")


def branch_of(key: str) -> tuple[str, str] | None:
    """(trigger id, name) of a key of `branch_file`; None for any other key."""
    found = _BRANCH_FILE.fullmatch(key)
    return (found[1], found[2]) if found else None


def suppressed(trigger: Trigger) -> str:
    """The record of a trigger that opened no branch, with the reason."""
    return f"{SUPPRESSED_PREFIX}{trigger.id}.json"


def suppressed_at(key: str) -> tuple[int, int]:
    """Epoch and step of a trigger whose record is there; (-1, -1) for another key."""
    found = re.fullmatch(rf"{SUPPRESSED_PREFIX}e(\d+)-t(\d+)\.json", key)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def rollouts(trigger_id: str) -> str:
    """The prefix of all rollouts of a branch."""
    return f"{ROLLOUTS_PREFIX}{trigger_id}/"


def rollout(trigger_id: str, candidate: str) -> str:
    """The folder of one rollout, e.g. ``rollouts/e0-t120/c007``."""
    return f"{rollouts(trigger_id)}{candidate}"


def rollout_job(trigger_id: str, candidate: str) -> str:
    """What to run: create-only, see documents.RolloutJob."""
    return f"{rollout(trigger_id, candidate)}/job.json"


def rollout_until(trigger_id: str, candidate: str) -> str:
    """The desired rung, overwritten by the operator; see documents.RolloutUntil."""
    return f"{rollout(trigger_id, candidate)}/until.json"


def rollout_trial(trigger_id: str, candidate: str, rung: int) -> str:
    """What was measured at a rung: create-only, a records.Trial."""
    return f"{rollout(trigger_id, candidate)}/trial-{rung:06d}.json"


_ROLLOUT_FILE = re.compile(rf"{ROLLOUTS_PREFIX}([^/]+)/([^/]+)/(job|until|trial-\d+)\.json")


def rollout_of(key: str) -> tuple[str, str, str] | None:
    """(trigger id, candidate, name) of a key of `rollout_job`, `rollout_until` or `rollout_trial`;
    None for any other key.
    """
    found = _ROLLOUT_FILE.fullmatch(key)
    return (found[1], found[2], found[3]) if found else None


def rollout_state(trigger_id: str, candidate: str, rung: int) -> str:
    """The folder of the end state published at a rung."""
    return f"{rollout(trigger_id, candidate)}/end-{rung:06d}"


def token_file(text: str) -> str:
    """The ids of a text, by its 32 digits: a digest of source, tokenizer and options."""
    return f"{TOKENS_PREFIX}{text}.bin"


def token_card(text: str) -> str:
    """The facts of a token file, written last: without it the token file does not exist."""
    return f"{TOKENS_PREFIX}{text}.json"


def history(epoch: int, attempt: int, first: int, last: int) -> str:
    """A chunk of the history: the rows of these steps, both included."""
    return f"{HISTORY_PREFIX}e{epoch}-a{attempt}-{first:012d}-{last:012d}.parquet"


_CHUNK = re.compile(rf"{HISTORY_PREFIX}e(\d+)-a(\d+)-(\d+)-(\d+)\.parquet")


def history_of(key: str) -> tuple[int, int, int, int] | None:
    """(epoch, attempt, first, last) of a key of `history`; None for any other key."""
    match = _CHUNK.fullmatch(key)
    if match is None:
        return None
    epoch, attempt, first, last = map(int, match.groups())
    return epoch, attempt, first, last


def state_history(folder: str) -> str:
    """The rows of the steps that led to a rollout's end state, from its base on."""
    return f"{folder}/history.parquet"


_STATE = r"(cp_\d+\.ptz|manifest\.json|good|history\.parquet|history-gap\.json)"
_STATE_PART = re.compile(
    rf"((?:checkpoints|ring)/e\d+/a\d+/\d+|{ROLLOUTS_PREFIX}[^/]+/[^/]+/end-\d+)/{_STATE}"
)
_TRIGGER = r"e\d+-t\d+[a-z0-9-]*"
_RECORD = re.compile(
    "|".join(
        (
            *(re.escape(name) for name in (RUN, COMPLETE, TEXT, TEXT_COMMITS, CATALOGUE)),
            rf"{LINEAGE_PREFIX}\d+\.json",
            rf"{ATTEMPTS_PREFIX}\d+\.json",
            rf"{SUPPRESSED_PREFIX}{_TRIGGER}\.json",
            _CHUNK.pattern,
            rf"{TOKENS_PREFIX}[0-9a-f]{{32}}\.(bin|json)",
            rf"(checkpoints|ring)/e\d+/a\d+/\d+/{_STATE}",
            rf"{BRANCHES_PREFIX}{_TRIGGER}/[a-z]+\.json",
            rf"{ROLLOUTS_PREFIX}{_TRIGGER}/[a-z0-9]+/((job|until|trial-\d+)\.json|end-\d+/{_STATE})",
            r"probe/[0-9a-f]+",
        )
    )
)


def state_of(key: str) -> str | None:
    """The folder of the saved state that the object is a part of; None for any other key."""
    found = _STATE_PART.fullmatch(key)
    return found[1] if found else None


def is_record(key: str) -> bool:
    """Whether the functions above can have built the key: what an erasure may delete."""
    return _RECORD.fullmatch(key) is not None
