"""Detectors by name: ours, today's literal rule, and the rules of other projects, to select and to compare.
To add one: a file here, a line in PRESETS, and `scripts/generate_crds.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from forkcast.departures import TierRules
from forkcast_monitor.presets.axolotl import AXOLOTL
from forkcast_monitor.presets.base import Preset
from forkcast_monitor.presets.lightning import LIGHTNING
from forkcast_monitor.presets.literal import LITERAL
from forkcast_monitor.presets.llm_c import LLM_C
from forkcast_monitor.presets.llm_foundry import LLM_FOUNDRY
from forkcast_monitor.presets.megatron import MEGATRON
from forkcast_monitor.presets.olmo_core import OLMO_CORE
from forkcast_monitor.presets.wandb_zscore import WANDB_ZSCORE
from forkcast_monitor.signals import SIGNALS

PRESETS: Mapping[str, Preset] = {
    "Forkcast": Preset(
        signals=SIGNALS, tiers=TierRules(), weighted=True, source="docs/detector.md"
    ),
    "Literal": LITERAL,
    "OlmoCore": OLMO_CORE,
    "LlmFoundry": LLM_FOUNDRY,
    "Lightning": LIGHTNING,
    "Megatron": MEGATRON,
    "LlmC": LLM_C,
    "WandbZScore": WANDB_ZSCORE,
    "Axolotl": AXOLOTL,
}
