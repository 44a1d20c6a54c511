"""docs/detector.md computes what the detector computes: its program, its formulas and its numbers."""

import math
import random
import re
from pathlib import Path

import pytest

from forkcast.departures import TierRules
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_monitor.presets import PRESETS
from forkcast_wire.manifest import Uncertainty
from tests.make import step_stats

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "detector.md").read_text()
WORDS = " ".join(PAGE.split())


def program():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(code, names)
    return names["Volatility"]()


def course(kind):
    """(loss, norm) of rows: noise about a falling loss, with what the kind says."""
    noise = random.Random(5)
    for n in range(900):
        loss = (
            3 + 2 * math.exp(-n / 80) + noise.gauss(0, 0.03) * (3 if noise.random() < 0.03 else 1)
        )
        norm = math.exp(noise.gauss(0, 0.1))
        if kind != "calm" and n % 200 >= 190 and n > 200:
            loss += 0.2 if kind in ("batch", "steps down") else 0.4
            norm *= 3 if kind == "state" else 1
        if kind == "steps down" and n > 500:
            loss -= 0.5
        if kind == "rounded":
            loss = round(loss, 1)
        yield loss, None if kind in ("no norm", "rounded") else norm


@pytest.mark.parametrize(
    "kind", ["calm", "state", "batch", "far batch", "no norm", "steps down", "rounded"]
)
def test_the_program_says_what_the_detector_says(kind):
    ours, detector = program(), Detector(configure(Uncertainty(warmup_steps=0)), "u")
    most = 0.0
    for step, (loss, norm) in enumerate(course(kind)):
        stats = step_stats(step, loss=loss, grad_norm=math.nan if norm is None else norm)
        found = detector.fold(stats).index.components["volatility"]
        assert ours.fold(loss, norm) == pytest.approx(found, rel=1e-6, abs=1e-6), step
        most = max(most, found)
    assert (most > 3.2) == (kind in ("state", "far batch", "no norm", "rounded")), most


def at(component, rows):
    """u of a signal after rows."""
    detector = Detector(configure(Uncertainty(warmup_steps=0)), "u")
    found = 0.0
    for stats in rows:
        found = detector.fold(stats).index.components.get(component, 0.0)
    return found


@pytest.mark.parametrize("logit", [30.0, 60.0, 75.0, 120.0, 400.0])
@pytest.mark.parametrize("entropy", [0.5, 0.2, 0.15, 0.1, 0.01])
def test_the_internal_arm_is_the_formula(logit, entropy):
    rows = [
        step_stats(n, loss=3.0, attention_logit_max=logit, attention_entropy=(0.9, entropy))
        for n in range(5)
    ]
    said = 3.2 * max(math.log(logit / 60), math.log(0.2 / entropy)) / math.log(2)
    assert at("entropy", rows) == pytest.approx(min(max(said, 0), 8), abs=1e-9)
    assert "u = 3.2 ln(L / 60) / ln 2" in PAGE
    assert "u = 3.2 ln(.20 / H) / ln 2" in PAGE


def test_a_norm_at_twice_its_least_is_an_event_of_drift():
    """Of a norm that has stood there for long; the loss does not move."""
    noise = random.Random(3)

    def rows(times):
        for n in range(900):
            norm = 1.0 if n < 300 else times
            yield step_stats(n, loss=3.0 + noise.gauss(0, 0.02), grad_norm=norm)

    least = 0.0005 * 600  # what was least is forgotten so far
    for times in (1.6, 2.0, 4.0):
        said = 3.2 * (math.log(times) - least - 0.35) / 0.35
        assert at("drift", rows(times)) == pytest.approx(min(max(said, 0), 8), abs=0.05)
    assert "(average of ln g - least - .35) / .35" in PAGE


def test_thresholds_weights_and_presets_are_those_in_force():
    rules = TierRules()
    for name, value in (
        ("singleZ", rules.single_z),
        ("z", rules.z),
        ("consecutiveSteps", rules.consecutive_steps),
        ("patienceRows", rules.patience_rows),
        ("cooldownSteps", rules.cooldown_steps),
    ):
        assert f"`{name}` ({value})" in WORDS
    assert configure(Uncertainty()).weights == {
        "volatility": 0.5,
        "entropy": 0.3,
        "drift": 0.2,
        "disagreement": 0.0,
    }
    assert "w = .5 volatility, .3 entropy, .2 drift" in WORDS
    named = re.findall(
        r"^\| (\w+) \| ", PAGE.split("## Presets")[1].split("\n## ")[0], re.MULTILINE
    )
    assert sorted(named) == sorted(["preset", *PRESETS])


def test_its_measured_figures_are_those_of_the_experiments():
    measured = re.findall(r"\d{1,3},\d{3}", PAGE)
    text = (DOCS / "experiments.md").read_text()
    given = {"100,000", "10,000"}  # what rates are counted in
    assert measured
    assert [one for one in measured if one not in given and one not in text] == []


def test_its_links_lead_somewhere():
    for target, anchor in re.findall(r"\]\(([\w/.-]+)(?:#([\w-]+))?\)", PAGE):
        text = (DOCS / target).read_text()
        titles = [
            re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        ]
        assert not anchor or anchor in titles, (target, anchor)
