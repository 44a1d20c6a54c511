"""Which of a log's own names is the step, the loss, the gradient norm. Pure.

A name is compared in its bare form: lower case, with one underscore for whatever is neither letter nor
digit. For each role there are names that are known, best first, and a rule for those that are not. A
role keeps its name once rows have been taken by it; one that appears later only fills an empty role.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

from forkcast_cli.logs import inside
from forkcast_cli.logs.base import LogError
from forkcast_cli.logs.inside import Inside
from forkcast_cli.logs.numbers_in_text import as_number


class Role(StrEnum):
    """What a column can be; the values are the names that `--columns` takes."""

    STEP = "step"
    LOSS = "loss"
    GRAD_NORM = "grad_norm"
    LEARNING_RATE = "lr"
    VALIDATION = "validation"
    RANK = "rank"
    RUN = "run"
    ATTENTION_ENTROPY = Inside.ENTROPY.value
    ATTENTION_LOGIT = Inside.LOGIT.value


#: Roles that several columns may have, one a layer, and that are not guessed among rivals.
INSIDE: Final[Mapping[Role, Inside]] = {
    Role.ATTENTION_ENTROPY: Inside.ENTROPY,
    Role.ATTENTION_LOGIT: Inside.LOGIT,
}
#: By role, bare names, best first. `_step` of W&B counts calls of its logger: any other is better.
_KNOWN: Final[Mapping[Role, tuple[str, ...]]] = {
    Role.STEP: (
        "train_global_step",
        "trainer_global_step",
        "global_step",
        "step",
        "steps",
        "iteration",
        "iterations",
        "iter",
        "num_updates",
        "update",
        "update_step",
        "optimizer_step",
        "training_step",
        "train_step",
        "time_step",
        "batch",
        "batch_idx",
        "s",
        "it",
        "i",
        "_step",
    ),
    Role.LOSS: (
        "loss",
        "train_loss",
        "training_loss",
        "train_lm_loss",
        "lm_loss",
        "train_crossentropyloss",
        "train_cross_entropy_loss",
        "train_ce_loss",
        "crossentropyloss",
        "cross_entropy_loss",
        "ce_loss",
        "loss_train_total",
        "loss_train",
        "learning_loss",
        "train_loss_step",
        "loss_step",
        "step_loss",
        "batch_loss",
        "train_batch_loss",
        "loss_train_lm",
        "nll_loss",
        "nll",
        "train_nll",
        "trl",
        "lm_loss_training",
        "loss_metrics_global_avg_loss",
    ),
    Role.GRAD_NORM: (
        "grad_norm",
        "train_grad_norm",
        "training_grad_norm",
        "gradnorm",
        "train_gradnorm",
        "gnorm",
        "train_gnorm",
        "gradient_norm",
        "train_gradient_norm",
        "total_grad_norm",
        "optim_total_grad_norm",
        "optim_grad_norm",
        "global_grad_norm",
        "train_global_grad_norm",
        "grad_norm_total",
        "grad_norm_2",
        "grad_2_0_norm_total",
        "l2_norm_grad_global",
        "learning_raw_grad_norm",
        "learning_grad_norm",
        "norm",
    ),
    Role.LEARNING_RATE: (
        "lr",
        "learning_rate",
        "train_lr",
        "train_learning_rate",
        "training_learning_rate",
        "optim_lr",
        "optim_learning_rate",
        "optim_learning_rate_group0",
        "optim_lr_group_0",
        "lr_group_0",
        "lr_adamw",
        "lr_adam",
        "lr_adamw_pg1",
        "lr_adamw_group0",
        "lr_decoupledadamw_group0",
        "learning_current_learning_rate",
        "lr_last",
    ),
    Role.VALIDATION: (
        "validation_loss",
        "val_loss",
        "valid_loss",
        "eval_loss",
        "eval_eval_loss",
        "train_eval_loss",
        "lm_loss_validation",
        "val_lm_loss",
        "eval_lm_loss",
        "eval_lm_crossentropyloss",
        "loss_val",
        "loss_eval",
        "loss_validation",
        "loss_valid",
        "valid_nll_loss",
        "tel",
        "dev_loss",
        "test_loss",
    ),
    Role.RUN: ("run", "run_name", "run_id", "run_uid", "trial", "experiment"),
    Role.RANK: ("rank", "global_rank", "process_rank", "process_index"),
}
_LOSS_WORDS: Final = frozenset({"loss", "nll", "xent", "crossentropyloss", "crossentropy"})
_HELD_OUT: Final = frozenset({"eval", "evaluation", "val", "valid", "validation", "dev", "test"})
#: Of a name with one of these: no loss of the language model, or none of one step.
_NO_LOSS: Final = frozenset(
    [
        "min",
        "max",
        "ppl",
        "perplexity",
        "aux",
        "auxiliary",
        "z",
        "zloss",
        "load",
        "balance",
        "balancing",
        "router",
        "moe",
        "scale",
        "scaler",
        "best",
        "epoch",
        "mask",
        "reward",
        "kl",
        "value",
        "policy",
        "count",
        "acc",
        "accuracy",
        "weight",
        "coef",
        "std",
        "var",
        "sd",
        "grad",
        "delta",
        "indexer",
        "mtp",
        "entropy",
        "threshold",
        "ema",
        "smooth",
        "smoothed",
        "config",
        "args",
        "hparams",
        "type",
        "fn",
    ]
)
_NO_NORM: Final = frozenset(
    ["min", "max", "clip", "clipped", "clipping", "std", "var", "layer", "param", "threshold"]
)
_BARE: Final = re.compile(r"[^a-z0-9]+")
_NUMBER: Final = re.compile(r"\d+")
#: Names that are remembered; a log may have another one in each row.
_MOST_NAMES: Final = 4096
#: A name in fewer than one of so many rows of its most frequent rival is passed over.
_SELDOM: Final = 4
#: What some loggers put before a known name.
_PREFIXES: Final = ("metrics_", "train_metrics_", "trainer_", "log_")


def bare(name: str) -> str:
    """``train/grad-norm`` as ``train_grad_norm``; the leading underscore of ``_step`` stays."""
    found = _BARE.sub("_", name.strip().lower()).rstrip("_")
    return found if name.lstrip().startswith("_") else found.lstrip("_")


def place(role: Role, name: str) -> int | None:
    """How good a name is for a role, 0 the best; None if it is no name for it."""
    if role in INSIDE:
        return None if inside.stem(INSIDE[role], name) is None else 0
    found = bare(name)
    known = _KNOWN[role]
    for form in (found, *(found.removeprefix(p) for p in _PREFIXES if found.startswith(p))):
        if form in known:
            return known.index(form)
    words = found.split("_")
    unknown = _UNKNOWN.get(role)
    if unknown is None or not unknown(words):
        return None
    return len(known) + len(words)


def _is_loss(words: list[str]) -> bool:
    held = set(words)
    if not held & _LOSS_WORDS and "cross_entropy" not in "_".join(words):
        return False
    return not held & (_HELD_OUT | _NO_LOSS - (held & {"entropy"} if "cross" in held else set()))


def _is_validation(words: list[str]) -> bool:
    held = set(words)
    return bool(held & _LOSS_WORDS and held & _HELD_OUT) and not held & _NO_LOSS


def _is_norm(words: list[str]) -> bool:
    joined = "_".join(words)
    named = joined.endswith(("grad_norm", "gradient_norm", "gradnorm"))
    return named and not set(words) & _NO_NORM and not _NUMBER.search(joined)


def _is_rate(words: list[str]) -> bool:
    return words[0] == "lr" or "_".join(words).endswith("learning_rate")


_UNKNOWN: Final[Mapping[Role, Callable[[list[str]], bool]]] = {
    Role.LOSS: _is_loss,
    Role.GRAD_NORM: _is_norm,
    Role.LEARNING_RATE: _is_rate,
    Role.VALIDATION: _is_validation,
}


class Columns:
    """The names in use, by role; ``*`` in one of INSIDE stands for a layer's number. given: names that
    are not to be guessed; "" for a role that is to stay empty.

    layers: by role of INSIDE, the layer of each name. rivals: the names among which none was taken.
    """

    def __init__(self, given: Mapping[Role, str] | None = None) -> None:
        self.given = dict(given or {})
        self.found: dict[Role, str] = {role: name for role, name in self.given.items() if name}
        self.layers: dict[Role, dict[str, int]] = {role: {} for role in INSIDE}
        self.rivals: dict[Role, list[str]] = {}
        self._seen: set[str] = set()
        self._losses: dict[str, bool] = {}

    def learn(self, names: Collection[str]) -> None:
        """Take notice of a row's names."""
        if self._seen.issuperset(names):
            return
        fresh = [name for name in names if name not in self._seen]
        if len(self._seen) < _MOST_NAMES:
            self._seen.update(fresh)
        for role in _KNOWN:
            if role not in self.found and role not in self.given:
                name = self.best(role, fresh)
                if name is not None:
                    self.found[role] = name
        self._learn_inside(fresh)

    def _learn_inside(self, names: Collection[str]) -> None:
        """Take notice of new names of what is measured inside the model."""
        for role, kind in INSIDE.items():
            if role not in self.found and role not in self.given:
                stem, rivals = inside.choose(kind, [*self.rivals.get(role, ()), *names])
                if stem is not None:
                    self.found[role] = stem
                elif rivals:
                    self.rivals[role] = rivals
            stem = self.found.get(role)
            if stem is not None:
                for name in names:
                    number = inside.layer(stem, name)
                    if number is not None and len(self.layers[role]) < _MOST_NAMES:
                        self.layers[role][name] = number

    @staticmethod
    def best(role: Role, names: Iterable[str]) -> str | None:
        """The best name for a role; of equals the first."""
        placed = [
            (position, number, name)
            for number, name in enumerate(names)
            if (position := place(role, name)) is not None
        ]
        return min(placed)[2] if placed else None

    def decide(self, rows: Iterable[Iterable[str]]) -> None:
        """Take notice of the names of the first rows at once: the best of all is taken, not the first.
        A name that stands in few rows does not displace one that stands in most.
        """
        counts = Counter(name for names in rows for name in names)
        for role in _KNOWN:
            fitting = {name: n for name, n in counts.items() if place(role, name) is not None}
            most = max(fitting.values(), default=0)
            often = [name for name, n in fitting.items() if n * _SELDOM >= most]
            if role not in self.found and role not in self.given and often:
                self.found[role] = self.best(role, often) or often[0]
        self._learn_inside(counts)
        self._seen.update(counts)

    def has_loss(self, values: Mapping[str, Any]) -> bool:
        """Whether one of a row's values can be the loss."""
        given = self.given.get(Role.LOSS)
        if given:
            return given in values
        return any(
            self._fits_loss(name) and as_number(value) is not None for name, value in values.items()
        )

    def _fits_loss(self, name: str) -> bool:
        fits = self._losses.get(name)
        if fits is None:
            if len(self._losses) >= _MOST_NAMES:
                self._losses.clear()
            fits = self._losses[name] = place(Role.LOSS, name) is not None
        return fits

    def missing(self) -> list[str]:
        """The given names that no row has had."""
        return [name for role, name in self.given.items() if name and not self._had(role, name)]

    def _had(self, role: Role, name: str) -> bool:
        return bool(self.layers[role]) if role in INSIDE else name in self._seen

    def seen(self) -> list[str]:
        """All names that rows have had, sorted."""
        return sorted(self._seen)


def given_columns(text: str) -> dict[Role, str]:
    """``step=iter,loss=train loss`` as columns. Raises LogError."""
    roles = ", ".join(role.value for role in Role)
    found: dict[Role, str] = {}
    for part in text.split(",") if text.strip() else ():
        role, equals, name = part.partition("=")
        try:
            at = Role(role.strip())
        except ValueError:
            raise LogError(f"{role.strip()!r} is no role of a column", f"one of {roles}") from None
        if not equals:
            raise LogError(f"{part.strip()!r} names no column", f"write {at.value}=NAME")
        if at in found:
            raise LogError(f"{at.value} is given twice", "give each role once")
        found[at] = name.strip()
    return found


def spoils(word: str) -> bool:
    """Whether a name that begins with the word is not the loss that it would be without it."""
    return bool(set(bare(word).split("_")) & (_HELD_OUT | _NO_LOSS))
