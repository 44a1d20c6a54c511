"""Detectors by name: ours, today's literal rule, and the rules of other projects, to select and to compare.
To add one: a file here, a line in PRESETS, and `scripts/generate_crds.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from forkcast.departures import TierRules
from forkcast_monitor.presets.base import Preset
from forkcast_monitor.signals import SIGNALS

PRESETS: Mapping[str, Preset] = {
    "Forkcast": Preset(signals=SIGNALS, tiers=TierRules(), weighted=True, source="docs/detect.md"),
}
