"""The monitor's Prometheus metrics, all in one table; labels come from closed sets and the run."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

REGISTRY = CollectorRegistry()
_RUN = ["run"]
INDEX = Gauge("forkcast_uncertainty_index", "Uncertainty Index", _RUN, registry=REGISTRY)
ZSCORE = Gauge("forkcast_uncertainty_zscore", "Index over its spread", _RUN, registry=REGISTRY)
LOSS = Gauge("forkcast_train_loss", "Training loss, nats/token", _RUN, registry=REGISTRY)
GRAD_NORM = Gauge("forkcast_grad_norm", "Gradient norm before clipping", _RUN, registry=REGISTRY)
STEPS = Counter("forkcast_steps", "Accepted steps", _RUN, registry=REGISTRY)
DUPLICATES = Counter("forkcast_stats_duplicates", "Records known", _RUN, registry=REGISTRY)
DROPPED = Counter("forkcast_stats_dropped", "Steps the ring dropped", _RUN, registry=REGISTRY)
TRIGGERS = Counter("forkcast_triggers", "Triggers by rule", [*_RUN, "rule"], registry=REGISTRY)
EPOCH = Gauge("forkcast_lineage_epoch", "Lineage epoch", _RUN, registry=REGISTRY)
LAG = Gauge("forkcast_stream_lag_steps", "Steps that wait for a late one", _RUN, registry=REGISTRY)
