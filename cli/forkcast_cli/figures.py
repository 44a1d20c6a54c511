"""The metrics of a run as words for people: name, value, and what it means."""

from __future__ import annotations

from forkcast_cli import words
from forkcast_cli.metrics import Metrics
from forkcast_cli.view import RunView

NOT_SAID = "—"


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return NOT_SAID if value is None else f"{value:{form}}{unit}"


def headline_tiles(metrics: Metrics, view: RunView) -> list[tuple[str, str, str]]:
    """(label, value, note) of the figures at the top of the page."""
    step = view.complete.step if view.complete else view.progress.get("step", 0)
    of_total = f"of {view.total_steps:,}; " if view.total_steps else ""
    return [
        ("steps", f"{step:,}", f"{of_total}lineage epoch {len(view.lineage)}"),
        *(
            [("passes over the text", said, "how often the run has seen each of its texts")]
            if (said := words.passes(view.progress))
            else []
        ),
        (
            "validation perplexity",
            _figure(metrics.validation_perplexity, ".2f"),
            f"{_figure(metrics.validation_loss, '.4f')} nats/token",
        ),
        (
            "branches",
            str(metrics.branches),
            f"{metrics.accepted} of {metrics.decided} decisions accepted",
        ),
        ("instability events", str(len(metrics.events)), _interval(metrics)),
        (
            "verification",
            _figure(metrics.verification_share, ".0%"),
            f"of the run's own steps; {metrics.verification_seconds:.0f} s of rollouts",
        ),
    ]


def _interval(metrics: Metrics) -> str:
    if metrics.events_per_100k is None:
        return ""
    return f"95 % interval {metrics.events_low:,.0f} to {metrics.events_high:,.0f} per 100k steps"


def figures(metrics: Metrics) -> list[tuple[str, str, str]]:
    """(name, value, definition) of every metric."""
    per = " per 100k steps"
    return [
        (
            "Validation perplexity",
            _figure(metrics.validation_perplexity, ".3f"),
            "exp of the loss of the last full evaluation, or of the newest validation",
        ),
        (
            "Instability events",
            (
                f"{len(metrics.events)}, {_figure(metrics.events_per_100k, ',.0f')}{per} "
                f"({_figure(metrics.events_low, ',.0f')} to {_figure(metrics.events_high, ',.0f')})"
            ),
            (
                "loss or gradient norm above mean + 6 sd of the previous 128 steps, merged where less "
                "than 50 steps apart; exact Poisson 95 % interval"
            ),
        ),
        (
            "Time to recover",
            (
                f"{_figure(metrics.median_steps_to_recover, ',.0f')} steps, "
                f"{metrics.not_recovered} not recovered"
            ),
            "median; until the 20-step median loss is back at the 100-step median before + 1 sd",
        ),
        (
            "Wasted compute",
            (
                f"{_figure(metrics.wasted_flops, '.3g')} FLOPs; with verification "
                f"{_figure(metrics.wasted_flops_with_verification, '.3g')}"
            ),
            (
                f"6 x parameters x tokens of {metrics.discarded_steps} discarded and "
                f"{metrics.recovering_steps} recovering steps; then of the rollout steps not adopted"
            ),
        ),
        (
            "Branch invoke rate",
            (
                f"{metrics.branches} of {metrics.triggers} triggers, "
                f"{_figure(metrics.branches_per_100k, ',.0f')}{per}"
            ),
            "branches opened; the other triggers were suppressed: budget, another branch open, mode, or the end of the run",
        ),
        (
            "Accept rate",
            f"{_figure(metrics.accept_rate, '.0%')} ({metrics.accepted} of {metrics.decided})",
            "decisions that adopted a candidate",
        ),
        *(
            (
                f"Relapsed within {one.steps:,} steps",
                f"{one.relapsed} of {one.watched} collapses",
                "triggered again since the adoption; only those watched for so long or relapsed",
            )
            for one in metrics.relapses
        ),
        (
            "Proxy versus real",
            (
                f"gap {_figure(metrics.proxy_gap, '.3f')} nats/token, rank correlation "
                f"{_figure(metrics.proxy_rank_correlation, '.2f')} ({metrics.proxy_compared} candidates)"
            ),
            (
                "forecast against measured loss at the same step, both with the mean of recent "
                "weights; empty if no rung is at proxy.horizonSteps, or the proxy abstained"
            ),
        ),
        (
            "Verification cost",
            f"{metrics.verification_steps:,} rollout steps, {metrics.verification_seconds:,.0f} s",
            f"replay included; {metrics.adopted_steps} of them were adopted and are training",
        ),
        *(
            (
                f"Pass rate of rung +{one.rung}",
                f"{one.passed / one.measured:.0%} ({one.passed} of {one.measured})",
                "finalists that went on, or at their last rung met every condition",
            )
            for one in metrics.rungs
        ),
    ]
