"""The proxy's Prometheus metrics, all in one table; every label comes from a closed set."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from forkcast.records import Forecast
from forkcast_wire.access import REASONS as REFUSALS

# each would double the series of a counter
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
FORECASTS = Counter(
    "forkcast_proxy_forecasts",
    "Forecasts of candidates",
    ["source", "outcome"],
    registry=REGISTRY,
)
ABSTENTIONS = Counter(
    "forkcast_proxy_abstentions", "Abstentions by reason", ["reason"], registry=REGISTRY
)
SECONDS = Histogram(
    "forkcast_proxy_request_seconds",
    "Of one request, all its candidates",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0),
    registry=REGISTRY,
)
MODEL = Gauge(
    "forkcast_proxy_model_info",
    "1 for the model in use; no series where there is none",
    ["sha256", "feature_version"],
    registry=REGISTRY,
)
REFUSED = Counter(
    "forkcast_proxy_requests_refused",
    "Calls refused before they were served",
    ["reason"],
    registry=REGISTRY,
)
EXPIRY = Gauge(
    "forkcast_proxy_certificate_expiry_timestamp_seconds",
    "When a certificate in use expires",
    ["file"],
    registry=REGISTRY,
)
#: How the service words a reason, and the label it has; the first that fits.
REASONS = (
    ("no fitted model", "no_model"),
    ("model rejected", "model_rejected"),
    ("the model forecasts", "horizon"),
    ("the window holds no finite loss", "no_loss"),
    ("the model is no better", "no_better_than_baseline"),
    ("out of distribution", "out_of_distribution"),
    ("the model gave a non-finite", "non_finite"),
)
# From the start, at zero: to Prometheus a counter that appears with its first count has not risen.
for _outcome in ("forecast", "abstained", "invalid"):
    for _source in ("model", "none"):
        FORECASTS.labels(_source, _outcome)
for _reason in (*(label for _, label in REASONS), "other"):
    ABSTENTIONS.labels(_reason)
for _reason in REFUSALS:
    REFUSED.labels(_reason)


def reason_label(reason: str) -> str:
    """The label of an abstention's reason; 'other' for one this table does not know."""
    return next((label for words, label in REASONS if reason.startswith(words)), "other")


def count(answers: Sequence[Forecast], source: str) -> None:
    """The answers to one request; source: model or none."""
    abstained = [one.abstained for one in answers if one.abstained is not None]
    FORECASTS.labels(source, "forecast").inc(len(answers) - len(abstained))
    FORECASTS.labels(source, "abstained").inc(len(abstained))
    for reason in abstained:
        ABSTENTIONS.labels(reason_label(reason)).inc()
