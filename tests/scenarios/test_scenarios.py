"""Runs every *.txt of this folder through the branch machine; README.md says how to write one.

Each ``look`` is rewritten to what really happened, and the text must come out as it was.
``FORKCAST_REWRITE=1 pytest tests/scenarios`` writes it into the files instead.
"""

import os
import sys
from pathlib import Path

import pytest

from forkcast.acceptance import AcceptanceRules, Preset
from forkcast.branch import branch_name
from forkcast.branch_rules import BranchRules
from forkcast.conclusion import redecide
from forkcast.decision import Decision
from forkcast.loop import reconcile
from forkcast.phases import Finished, Forking, Releasing, Verifying
from forkcast.records import Trigger, TriggerRule
from forkcast_wire.documents import dump, load

sys.path.insert(0, str(Path(__file__).parent))
from scenario_world import ScenarioWorld, entry_of_another, state

FILES = sorted(Path(__file__).parent.glob("*.txt"))


class Scenario:
    """Reads a text line by line. Each operator remembers the phase it was last in."""

    def __init__(self):
        self.world, self.memory = ScenarioWorld(), {}

    def line(self, text):
        said, _, comment = text.partition("#")
        words = said.partition("->")[0].split()
        if not words:
            return text
        operator = words.pop(0)[:-1] if words[0].endswith(":") else ""
        command, *arguments = words
        if command == "look":
            return self.look(operator, arguments, said, f"  #{comment}" if comment else "")
        plain = [word for word in arguments if "=" not in word]
        named = dict(word.split("=", 1) for word in arguments if "=" in word)
        getattr(self, f"say_{command}")(*plain, **named)
        return text

    def look(self, operator, arguments, said, comment):
        world = self.world
        start = Forking(branch=branch_name("run", world.trigger), trigger=world.trigger)
        phase = self.memory.get(operator) or world.saved or start
        before, world.losing, world.did = world.saved, "lost" in arguments, []
        after = reconcile(world, phase, world.rules)
        if world.losing:  # the operator died before anything of it came about
            world.saved, after = before, phase
        self.memory[operator] = after
        did = f": {', '.join(world.did)}" if world.did else ""
        return f"{said.partition('->')[0].rstrip()} -> {named_phase(after)}{did}{comment}"

    def say_trigger(self, **said):
        numbers = {name: int(value) for name, value in said.items()}
        self.world.trigger = Trigger(
            run_uid="u",
            epoch=numbers.get("epoch", 0),
            step=numbers["step"],
            onset_step=numbers["onset"],
            rule=TriggerRule.SINGLE,
            z=4.0,
            index=2.0,
            components={},
            thresholds={},
        )

    def say_rules(self, rungs="10", confirm="20", finalists="2", preset="Default", mode="Enforce"):
        self.world.rules = BranchRules(
            rungs=tuple(map(int, rungs.split(","))),
            confirm_steps=int(confirm),
            confirm_finalists=int(finalists),
            apply=mode == "Enforce",
            acceptance=AcceptanceRules(preset=Preset(preset)),
        )

    def say_bases(self, *steps):
        self.world.bases = tuple(state(f"ring {s}", int(s)) for s in steps if s != "none")

    def say_candidate(self, name, **said):
        self.world.candidate(name, **said)

    def say_trial(self, name, rung, *flags, **said):
        status = {"diverged": "Diverged", "failed": "Failed"}
        how = next((status[flag] for flag in flags if flag in status), "Ok")
        self.world.trial(name, rung, status=how, stateless="stateless" in flags, **said)

    def say_main(self, *flags, loss):
        losses = {self.world.trigger.step: float(loss)}
        self.world.show(main_losses=losses, main_over_threshold="over" in flags)

    def say_durable(self, epoch):
        self.world.show(durable_epoch=int(epoch))

    def say_expired(self):
        self.world.show(expired=True)

    def say_finished(self):
        self.world.show(run_finished=True)

    def say_taken(self, branch):  # the next epoch is another branch's
        self.world.show(lineage=entry_of_another(self.world.trigger, branch))

    def say_restart(self):
        self.memory.clear()


def named_phase(phase):
    match phase:
        case Verifying(rung=rung):
            return f"Verifying +{rung}"
        case Releasing(outcome=outcome, reason=reason) | Finished(outcome=outcome, reason=reason):
            return f"{type(phase).__name__} {outcome} ({reason})"
    return type(phase).__name__


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path):
    scenario, text = Scenario(), path.read_text()
    happened = "\n".join(map(scenario.line, text.splitlines())) + "\n"
    if os.environ.get("FORKCAST_REWRITE"):
        path.write_text(happened)
        return
    assert happened == text
    for decision in scenario.world.decided:
        recorded = load(Decision, dump(decision))
        again = redecide(recorded, scenario.world.rules)
        assert (again.outcome, again.reason, again.cause_step, again.winner, again.judgements) == (
            decision.outcome,
            decision.reason,
            decision.cause_step,
            decision.winner,
            decision.judgements,
        ), "a recorded decision is enough to take it again"
    assert isinstance(scenario.world.saved, Finished), "a scenario goes on to the branch's end"
