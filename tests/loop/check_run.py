"""Reads the folder of a run that has ended and names every invariant that is broken.

    python tests/loop/check_run.py DIR [--store DIR] [--json]

It has readers of its own and imports nothing of Forkcast: what it knows is the documented layout. Exit
code 0: nothing is broken; 1: something is, a line each. --store: where the records are, if the run
keeps them elsewhere (the folder of a bucket's prefix).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import struct
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from blake3 import blake3

_STATE = re.compile(r"(checkpoints|ring)/e(\d+)/a(\d+)/(\d{12})")
_CHUNK = re.compile(r"e(\d+)-a(\d+)-(\d{12})\.parquet")
_PART = re.compile(r".*\.part$")
_ADOPTING = ("Accepted", "ControlAdopted")


class Run:
    """The documents of one run. Reading notes what cannot be read."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = folder, store
        self.broken: list[str] = []

    def json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            self.broken.append(f"{path}: is missing")
        except ValueError as error:
            self.broken.append(f"{path}: is no JSON ({error})")
        return None

    def expect(self, holds: bool, what: str) -> None:  # noqa: FBT001
        if not holds:
            self.broken.append(what)

    def numbered(self, pattern: str) -> list[tuple[int, Any]]:
        found = [(int(path.stem), self.json(path)) for path in self.store.glob(pattern)]
        return sorted((number, one) for number, one in found if one is not None)


def check(folder: Path, store: Path | None = None) -> list[str]:
    """What is broken, in words."""
    run = Run(folder, store or folder)
    try:
        _check(run)
    except (KeyError, TypeError, AttributeError) as error:
        run.broken.append(f"a document lacks what its kind has: {error!r}")
    return run.broken


def _check(run: Run) -> None:
    folder = run.folder
    info, manifest = run.json(folder / "run.json"), run.json(folder / "manifest.json")
    if info is None or manifest is None:
        return
    total = manifest["spec"]["training"]["totalSteps"]
    done = run.json(run.store / "complete.json")
    if done is not None:
        run.expect(done["step"] == total, f"complete.json: step {done['step']}, wanted {total}")
    states = dict(_states(run, info["uid"]))
    branches = _branches(run)
    lineage = _lineage(run, info["uid"], branches)
    _catalogue(run, states)
    _triggers(run, branches)
    _statistics(run, info["uid"], lineage, total)
    _history(run, info["uid"], lineage, total)
    _attempts(run, states)
    _leftovers(run)
    if done is not None:
        run.expect(done["epoch"] == len(lineage), f"complete.json: epoch {done['epoch']}")
        last = [s for s in states.values() if (s["epoch"], s["step"]) == (len(lineage), total)]
        run.expect(bool(last), f"no state of epoch {len(lineage)} at step {total} was saved")


# ------------------------------------------------------------------------------------------- states


def _states(run: Run, uid: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A state exists if its manifest does; then its bytes are the manifest's."""
    for path in run.store.glob("*/e*/a*/*/manifest.json"):
        key = path.parent.relative_to(run.store).as_posix()
        match = _STATE.fullmatch(key)
        if match is None or (document := run.json(path)) is None:
            continue
        state = document["state"]
        place = tuple(int(part) for part in match.groups()[1:])
        told = (state["epoch"], state["attempt"], state["step"])
        run.expect(place == told, f"{key}: its manifest says epoch, attempt, step {told}")
        run.expect(state["key"] == key, f"{key}: its manifest says key {state['key']}")
        run.expect(document["run_uid"] == uid, f"{key}: of run {document['run_uid']}")
        _bytes(run, key, state)
        yield key, state


def _bytes(run: Run, key: str, state: dict[str, Any]) -> None:
    path = run.store / key / f"cp_{state['step']}.ptz"
    if not path.exists():
        run.broken.append(f"{key}: has a manifest and no bytes")
        return
    data = path.read_bytes()
    run.expect(len(data) == state["size_bytes"], f"{key}: {len(data)} bytes")
    run.expect(_proven(data, state["digest"]), f"{key}: other bytes")


def _proven(data: bytes, digest: str) -> bool:
    """Whether a container of format 2 is the one of that digest: the index's, which has each frame's."""
    if len(data) < 64 or data[:8] != b"FCPTZ\0\0\2":
        return False
    start, length = struct.unpack("<QQ", data[8:24])
    index = data[start : start + length]
    if start + length != len(data) or data[56:64] != bytes(8):
        return False
    if not data[24:56].hex() == hashlib.sha256(index).hexdigest() == digest:
        return False
    frames = [frame for row in json.loads(index)["tensors"] for frame in row["frames"]]
    ends = [64, *(at + size for at, size, _, _ in frames)]
    return [*(at for at, *_ in frames), start] == ends and all(
        blake3(data[at : at + size]).hexdigest() == told for at, size, _, told in frames
    )


def _catalogue(run: Run, states: dict[str, dict[str, Any]]) -> None:
    path = run.store / "catalogue.json"
    catalogue = run.json(path) if path.exists() else {"pins": {}, "tombstones": []}
    if catalogue is None:
        return
    run.expect(catalogue["pins"] == {}, f"catalogue.json: still pinned: {catalogue['pins']}")
    for key in catalogue["tombstones"]:
        run.expect(key not in states, f"{key}: has a tombstone and is there")


# ------------------------------------------------------------------------------- branches, lineage


def _branches(run: Run) -> dict[str, dict[str, Any]]:
    """By trigger id: opened, decided at most once, ended."""
    found: dict[str, dict[str, Any]] = {}
    for folder in sorted((run.store / "branches").glob("*")):
        name = folder.name
        opened, phase = run.json(folder / "branch.json"), run.json(folder / "phase.json")
        ended = run.json(folder / "outcome.json")
        if opened is None or phase is None or ended is None:
            continue
        found[name] = {"opened": opened, "ended": ended}
        trigger = opened["trigger"]
        run.expect(name == f"e{trigger['epoch']}-t{trigger['step']}", f"branch {name}: {trigger}")
        run.expect(phase["kind"] == "Finished", f"branch {name}: phase {phase['kind']}")
        said = phase["phase"].get("outcome")
        run.expect(said == ended["outcome"], f"branch {name}: phase says {said}")
        if (folder / "decision.json").exists():
            decision = run.json(folder / "decision.json")
            if decision is not None:
                found[name]["decision"] = decision
                _decision(run, name, decision, trigger)
        for path in (run.store / "rollouts" / name).glob("*/until.json"):
            wish = run.json(path)
            run.expect(wish is None or wish["until"] is None, f"{path.parent}: still wanted")
    return found


def _decision(run: Run, name: str, decision: dict[str, Any], trigger: Any) -> None:
    """A decision rests on what was measured, and on nothing else."""
    run.expect(decision["trigger"] == trigger, f"branch {name}: decided about another trigger")
    for trial in decision["trials"]:
        path = f"rollouts/{name}/{trial['candidate']}/trial-{trial['rung']:06d}.json"
        measured = run.json(run.store / path)
        run.expect(measured in (None, trial), f"{path}: is not what the decision says")
    tried = {trial["candidate"] for trial in decision["trials"]}
    judged = {one["candidate"] for one in decision["judgements"]}
    run.expect(judged <= tried | set(decision["draft"]["finalists"]), f"branch {name}: {judged}")
    adopts = decision["outcome"] in _ADOPTING and decision["applied"]
    run.expect(
        adopts == (decision["adopted"] is not None and decision["applied"]),
        f"branch {name}: {decision['outcome']} and {decision['adopted']}",
    )


def _lineage(run: Run, uid: str, branches: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One record an epoch, without a gap, each from one decision."""
    entries = run.numbered("lineage/*.json")
    run.expect(
        [number for number, _ in entries] == list(range(1, len(entries) + 1)),
        f"lineage: epochs {[number for number, _ in entries]}",
    )
    for number, entry in entries:
        name = f"e{number - 1}-t{entry['trigger_step']}"
        run.expect(entry["epoch"] == number, f"lineage/{number}.json: epoch {entry['epoch']}")
        run.expect(entry["run_uid"] == uid, f"lineage/{number}.json: run {entry['run_uid']}")
        if "decision" not in branches.get(name, {}):
            run.broken.append(f"lineage/{number}.json: branch {name} has no decision")
            continue
        path = run.store / "branches" / name / "decision.json"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        run.expect(digest == entry["decision_digest"], f"lineage/{number}.json: another decision")
        decision = branches[name]["decision"]
        run.expect(decision["adopted"] == entry["state"], f"lineage/{number}.json: another state")
        run.expect(entry["base_step"] <= entry["trigger_step"] <= entry["state"]["step"], name)
        _bytes(run, entry["state"]["key"], entry["state"])
    adopted = [n for n, one in branches.items() if one["ended"]["outcome"] in _ADOPTING]
    run.expect(len(adopted) == len(entries), f"adopted by {adopted}, in the lineage {len(entries)}")
    return [entry for _, entry in entries]


def _triggers(run: Run, branches: dict[str, dict[str, Any]]) -> None:
    """Every trigger that fired was settled once: a branch, or a record of why there is none."""
    fired = [run.json(path) for path in sorted((run.folder / "monitor/triggers").glob("*.json"))]
    ids = [f"e{one['epoch']}-t{one['step']}" for one in fired if one is not None]
    run.expect(len(set(ids)) == len(ids), f"triggers recorded twice: {ids}")
    suppressed = {path.stem for path in (run.store / "suppressed").glob("*.json")}
    for one in ids:
        count = (one in branches) + (one in suppressed)
        run.expect(count == 1, f"trigger {one}: settled {count} times")
    unknown = (set(branches) | suppressed) - set(ids)
    run.expect(not unknown, f"settled and never fired: {sorted(unknown)}")


# --------------------------------------------------------------------------------------- statistics


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    for path in sorted((run.folder / "statistics").glob("*")):
        if _CHUNK.fullmatch(path.name):
            yield from pq.read_table(path).to_pylist()
    tail = run.folder / "statistics.tail"
    data = tail.read_bytes() if tail.exists() else b""
    while data:
        magic, length, checksum = _HEAD.unpack(data[:12].ljust(12, b"\0"))
        frame, data = data[12 : 12 + length], data[12 + length :]
        if magic != b"\xfcTL1" or zlib.crc32(frame) != checksum:
            run.broken.append(f"{tail}: damaged")
            return
        for record in _fields(frame).get(1, []):
            fields = _fields(record)
            numbers = {name: fields.get(n, [0])[-1] for n, name in _NUMBERS.items()}
            yield {"run_uid": fields.get(1, [b""])[-1].decode(), **numbers}


#: Integers of a record by field number; 0 is not written.
_NUMBERS = {2: "epoch", 3: "attempt", 4: "rank", 5: "step"}
_HEAD = struct.Struct("<4sII")


def _fields(message: bytes) -> dict[int, list[Any]]:
    """The values of a protobuf message by field number, those of fixed width as bytes."""
    found: dict[int, list[Any]] = defaultdict(list)
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, after = _varint(message, at) if key & 7 in (0, 2) else (8 if key & 7 == 1 else 4, at)
        at = after if key & 7 == 0 else after + value
        found[key >> 3].append(value if key & 7 == 0 else message[after:at])
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 128:
            return value, at


def _statistics(run: Run, uid: str, lineage: list[dict[str, Any]], total: int) -> None:
    """No step is on record twice in one attempt, and none of the run's lineage is missing."""
    seen: Counter[tuple[int, int, int, int]] = Counter()
    steps: dict[int, set[int]] = defaultdict(set)
    for row in _rows(run):
        run.expect(row["run_uid"] == uid, f"statistics: a row of run {row['run_uid']}")
        seen[row["epoch"], row["attempt"], row["rank"], row["step"]] += 1
        if row["rank"] == 0:
            steps[row["epoch"]].add(row["step"])
    twice = sorted(key for key, count in seen.items() if count > 1)
    run.expect(not twice, f"statistics: on record twice (epoch, attempt, rank, step): {twice[:5]}")
    ends = [entry["state"]["step"] for entry in lineage]
    _all_there(run, "statistics", steps, [0, *ends], lineage, total)


def _history(run: Run, uid: str, lineage: list[dict[str, Any]], total: int) -> None:
    """The history in the store has every step of the lineage, those of the winners included."""
    steps: dict[int, set[int]] = defaultdict(set)
    for path in sorted((run.store / "history").glob("*.parquet")):
        for row in pq.read_table(path, columns=["run_uid", "epoch", "step"]).to_pylist():
            run.expect(row["run_uid"] == uid, f"history: a row of run {row['run_uid']}")
            steps[row["epoch"]].add(row["step"])
    bases = [entry["base_step"] for entry in lineage]
    _all_there(run, "history", steps, [0, *bases], lineage, total)


def _all_there(
    run: Run,
    what: str,
    steps: dict[int, set[int]],
    firsts: list[int],
    lineage: list[dict[str, Any]],
    total: int,
) -> None:
    """firsts: by epoch, the first step that has to be on record."""
    for epoch, first in enumerate(firsts):
        last = lineage[epoch]["base_step"] if epoch < len(lineage) else total
        missing = sorted(set(range(first, last)) - steps[epoch])
        run.expect(
            not missing,
            f"{what}: epoch {epoch}: {len(missing)} steps from {first} to {last - 1} are "
            f"missing: {missing[:8]}",
        )


def _attempts(run: Run, states: dict[str, dict[str, Any]]) -> None:
    count = run.json(run.folder / "attempts.json")
    used = [state["attempt"] for state in states.values()]
    run.expect(count is None or count >= max(used, default=0), f"attempts.json: {count} < {used}")


def _leftovers(run: Run) -> None:
    for path in (run.folder / "scratch").glob("*"):
        run.broken.append(f"{path}: was left")
    for path in run.folder.rglob("*"):
        run.expect(not _PART.fullmatch(path.name), f"{path}: was left")


def main() -> int:
    """0 if nothing is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="the run's work directory")
    parser.add_argument("--store", type=Path, help="where its records are; the folder by default")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    given = parser.parse_args()
    broken = check(given.folder, given.store)
    if given.json:
        print(json.dumps(broken))
    else:
        print("\n".join(broken) or f"{given.folder}: nothing is broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
