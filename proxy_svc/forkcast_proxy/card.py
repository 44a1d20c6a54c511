"""model.json, the card of model.onnx: what the model is, how it was judged, when it must abstain.

Written by `forkcast_proxy.fit`; canonical JSON. The model's outputs are, in this order: the loss at
the horizon relative to the window's reference, the logit of an instability event, log(1 + recovery
steps).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forkcast_proxy.calibration import RiskTable

CARD_VERSION = 2
OUTPUTS = ("loss", "divergence", "recovery")
#: What is withheld or served by itself: the outputs, and the calibrated risk of an event.
SERVED = (*OUTPUTS, "risk")
MODEL_FILE, CARD_FILE = "model.onnx", "model.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalTable:
    """point +- quantile * (spread + floor). quantile: None if the calibration runs were too few
    for the level, then the output abstains.
    """

    alpha: float
    quantile: float | None
    floor: float
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """sha256: of model.onnx, hex. features: names and, from the training runs, ranges beyond which
    the model abstains. horizons: steps ahead it was fitted for, rising; it is read between them,
    never beyond. risk: a table for each horizon. served: for each name of SERVED, the horizons at
    which it surely beat the best trivial forecast on held-out runs; elsewhere it is withheld.
    figures: the evaluation, by name.
    """

    version: int
    feature_version: int
    sha256: str
    feature_names: tuple[str, ...]
    feature_low: tuple[float, ...]
    feature_high: tuple[float, ...]
    horizons: tuple[int, ...]
    loss: IntervalTable
    recovery: IntervalTable
    risk: tuple[RiskTable, ...]
    served: Mapping[str, tuple[int, ...]]
    figures: Mapping[str, float | None]
    made_from: str
