"""Fuzzing of the readers of what others write: sound samples, changed at random, read by the public
reader. A reader answers, or refuses with its own error; anything else is a finding.

A target is one file here, its samples a folder of corpus/. The budget is a count, the choice of changes
depends on the seed alone, so a run can be repeated; `make fuzz` goes on for hours. A finding is written
to a file and becomes a sample once it is fixed: put it into the target's folder.

FORKCAST_FUZZ_CASES   changed inputs of each target (300)
FORKCAST_FUZZ_SEED    of the changes (0)
FORKCAST_FUZZ_FOUND   folder for findings (the system's folder for temporary files)
"""

import hashlib
import json
import os
import random
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
_NUMBERS = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64, 10**400, 0.5)
_SCALARS = (
    *_NUMBERS,
    1e308,
    float("nan"),
    float("inf"),
    None,
    True,
    "",
    "a" * 5000,
    "\ud800",
    "\0",
)
_BYTES = (
    b"\0",
    b"\xff",
    b"\n",
    b"{",
    b"[",
    b'"',
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"NaN",
)


def samples(target):
    """The corpus of a target, in a fixed order."""
    found = sorted(path for path in (CORPUS / target).iterdir() if path.is_file())
    assert found, f"no samples of {target}"
    return [path.read_bytes() for path in found]


def fuzz(target, read, refusals, more=()):
    """Read every sample, then changed ones. refusals: the errors that the reader is documented to
    raise. more: samples made by the target itself.
    """
    sound = [*samples(target), *more]
    cases = int(os.environ.get("FORKCAST_FUZZ_CASES", "300"))
    rng = random.Random(f"{target} {os.environ.get('FORKCAST_FUZZ_SEED', '0')}")
    for data in sound:
        _try(target, read, refusals, data)
    for _ in range(cases):
        data = rng.choice(sound)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            data = _changed(rng, data, sound)
        _try(target, read, refusals, data)


def _try(target, read, refusals, data):
    try:
        read(data)
    except refusals:
        return
    except Exception as error:
        folder = Path(os.environ.get("FORKCAST_FUZZ_FOUND", tempfile.gettempdir()))
        path = folder / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        error.add_note(f"fuzz target {target}: the input is in {path}; it begins {data[:300]!r}")
        raise


def _changed(rng, data, sound):
    if rng.random() < 0.6:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            pass
        else:
            return json.dumps(_changed_document(rng, document)).encode()
    return rng.choice((_flip, _cut, _repeat, _insert, _splice))(rng, data, sound)


def _changed_document(rng, value):
    """One place of a JSON document with another value, without it, or twice."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        chance = rng.random()
        if chance < 0.1:
            return {name: one for name, one in value.items() if name != key}
        if chance < 0.15:
            return {**value, rng.choice(("x", "", "epoch")): rng.choice(_SCALARS)}
        return {**value, key: _changed_document(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        chance = rng.random()
        if chance < 0.1:
            return [*value[:at], *value[at + 1 :]]
        if chance < 0.2:
            return [*value, value[at]]
        return [*value[:at], _changed_document(rng, value[at]), *value[at + 1 :]]
    return rng.choice((*_SCALARS, [], {}, [value], {"a": value}, [[[[]]]]))


def _flip(rng, data, _sound):
    if not data:
        return b"\0"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _cut(rng, data, _sound):
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + data[b:] if rng.random() < 0.7 else data[:a]


def _repeat(rng, data, _sound):
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:b] * rng.choice((1, 2, 9)) + data[b:]


def _insert(rng, data, _sound):
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((*_BYTES, rng.randbytes(4))) + data[at:]


def _splice(rng, data, sound):
    other = rng.choice(sound)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
