"""Every fuzz target takes its own seeds and all that once broke it, and a short turn of the fuzzer."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parent
TARGETS = sorted(path.stem for path in (_FOLDER / "targets").glob("[!_]*.py"))
#: Inputs tried in the suite; `make fuzz` goes by time.
_RUNS = int(os.environ.get("FORKCAST_FUZZ_RUNS", "2000"))
#: A target may refuse these of its own seeds: they show what a refusal looks like.
_REFUSED = {"decision": 1}


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_real_inputs(name):
    target = importlib.import_module(f"tests.fuzz.targets.{name}")
    refused = []
    seeds = list(target.seeds())
    for seed in seeds:
        try:
            target.feed(seed)
        except target.REFUSALS as error:
            refused.append(error)
    assert len(seeds) > len(refused)
    assert len(refused) <= _REFUSED.get(name, 0), refused


@pytest.mark.parametrize("name", TARGETS)
def test_what_once_broke_it_is_refused_or_taken(name):
    target = importlib.import_module(f"tests.fuzz.targets.{name}")
    for path in sorted((_FOLDER / "corpus" / name).glob("*")):
        try:
            target.feed(path.read_bytes())
        except target.REFUSALS:
            continue


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_turn_of_the_fuzzer_finds_nothing(name):
    pytest.importorskip("atheris", reason="the fuzzer is built for Linux on x86-64 only")
    command = [sys.executable, "-m", "tests.fuzz", name, f"--runs={_RUNS}", "--seed=1"]
    done = subprocess.run(
        command, cwd=_FOLDER.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
