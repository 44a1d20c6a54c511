"""The events of a run, from triggers and from the monitor's rows."""

from dataclasses import replace

from forkcast.records import Tier, TriggerRule
from forkcast_wire.run_events import event_of
from tests.make import trigger


def test_a_trigger_is_an_event_with_the_component_that_says_most():
    found = event_of(
        trigger(step=9, onset_step=7, components={"drift": 0.5, "volatility": 4.0}, cause="Rose")
    )
    assert (found.step, found.onset_step, found.tier) == (9, 7, Tier.BRANCH)
    assert (found.component, found.cause) == ("volatility", "Rose")


def test_a_trigger_that_no_component_speaks_for_is_of_its_rule():
    told = trigger(rule=TriggerRule.VALIDATION_REGRESSION, components={"volatility": 0.0})
    assert event_of(told).component == "ValidationRegression"
    assert event_of(replace(told, components={})).component == "ValidationRegression"


def test_a_trigger_of_an_earlier_version_gets_a_cause_from_its_figures():
    told = trigger(
        step=9, onset_step=7, rule=TriggerRule.SINGLE, z=3.5, components={"drift": 4.0}, cause=""
    )
    assert event_of(told).cause == "Single: z 3.5, most from drift since step 7"
    assert event_of(replace(told, components={}, onset_step=9)).cause == "Single: z 3.5"
