"""Which names a role of a column can have. Pure.

A name is compared in its bare form: lower case, with one underscore for whatever is neither letter nor
digit. For each role there are names that are known, best first, and a rule for those that are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from forkcast_cli.logs import inside
from forkcast_cli.logs.inside import Inside


class Role(StrEnum):
    """What a column can be; the values are the names that `--columns` takes."""

    STEP = "step"
    LOSS = "loss"
    GRAD_NORM = "grad_norm"
    LEARNING_RATE = "lr"
    VALIDATION = "validation"
    EPOCH = "epoch"
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
KNOWN: Final[Mapping[Role, tuple[str, ...]]] = {
    Role.STEP: (
        "train_global_step",
        "trainer_global_step",
        "global_step",
        "step",
        "steps",
        "iteration",
        "iterations",
        "iter",
        "current_steps",
        "current_step",
        "global_step_max_steps",
        "iter_num",
        "time_batch",
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
        "reduced_train_loss",
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
    Role.EPOCH: ("epoch", "train_epoch", "trainer_epoch", "epochs", "ep"),
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
    known = KNOWN[role]
    for form in (found, *(found.removeprefix(p) for p in _PREFIXES if found.startswith(p))):
        if form in known:
            return known.index(form)
    words = found.split("_")
    unknown = _UNKNOWN.get(role)
    if unknown is None or not unknown(words):
        return None
    return len(known) + len(words)


def is_known(role: Role, name: str) -> bool:
    """Whether a name that has a place is one of the known ones, and no guess."""
    position = place(role, name)
    return position is not None and (role in INSIDE or position < len(KNOWN[role]))


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


def spoils(word: str) -> bool:
    """Whether a name that begins with the word is not the loss that it would be without it."""
    return bool(set(bare(word).split("_")) & (_HELD_OUT | _NO_LOSS))
