"""Which name is the loss, the step, the norm: known names, unknown ones, and what must never be taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkcast_cli.logs.base import LogError
from forkcast_cli.logs.columns import Columns, given_columns
from forkcast_cli.logs.names import Role, bare, place

LOSSES = [
    "loss",
    "train/loss",
    "train_loss",
    "Train/Loss",
    "lm loss",
    "train/CE loss",
    "loss/train/total",
]
LOSSES += [
    "train/CrossEntropyLoss",
    "learning/loss",
    "train_loss_step",
    "Training Loss",
    "my_model/loss",
]
NEVER = [
    "eval_loss",
    "val/loss",
    "valid_loss",
    "loss/validation",
    "test_loss",
    "train/aux_loss",
    "z_loss",
]
NEVER += [
    "train/loss__MIN",
    "train/loss__MAX",
    "load_balancing_loss",
    "router/loss",
    "loss_scale",
    "kl_loss",
]
NEVER += [
    "ppl",
    "perplexity",
    "train_loss_epoch",
    "best_loss",
    "loss_mask",
    "policy_loss",
    "entropy_loss",
]
NEVER += [
    "grad_norm/loss_std",
    "config/loss",
    "epoch",
    "accuracy",
    "dev/nll",
    "loss scale",
    "moe aux loss",
]
WORDS = [
    "eval",
    "val",
    "valid",
    "validation",
    "test",
    "dev",
    "min",
    "max",
    "ppl",
    "aux",
    "z",
    "load_balancing",
]
SEPARATORS = st.sampled_from("_-/. ")


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_known(name):
    columns = Columns()
    columns.decide([["epoch", "step", *NEVER, name]])
    assert columns.found[Role.LOSS] == name


@pytest.mark.parametrize("name", NEVER)
def test_what_is_no_training_loss_is_never_taken(name):
    assert place(Role.LOSS, name) is None


@given(st.sampled_from(WORDS), SEPARATORS, st.sampled_from(LOSSES), st.booleans(), st.booleans())
def test_a_word_that_says_otherwise_spoils_any_name(word, separator, name, before, upper):
    spoilt = f"{word}{separator}{name}" if before else f"{name}{separator}{word}"
    assert place(Role.LOSS, spoilt.upper() if upper else spoilt) is None


@given(st.permutations([*LOSSES, *NEVER, "step", "grad_norm", "lr"]))
def test_the_order_of_columns_does_not_matter_among_names_of_unlike_rank(names):
    columns = Columns()
    columns.decide([names])
    assert columns.found[Role.LOSS] in (
        "loss",
        "train/loss",
        "train_loss",
        "Train/Loss",
        "Training Loss",
    )
    assert columns.found[Role.STEP] == "step"
    assert (columns.found[Role.GRAD_NORM], columns.found[Role.LEARNING_RATE]) == ("grad_norm", "lr")


@given(st.text(max_size=40))
def test_any_name_has_a_place_or_none(name):
    for role in Role:
        found = place(role, name)
        assert found is None or found >= 0
    assert bare(name) == bare(bare(name))


@pytest.mark.parametrize(
    ("role", "names", "wanted"),
    [
        (Role.STEP, ["_step", "train/global_step"], "train/global_step"),
        (Role.STEP, ["_step", "_runtime"], "_step"),
        (Role.STEP, ["epoch", "num_updates"], "num_updates"),
        (Role.STEP, ["Step", "epoch"], "Step"),
        (Role.STEP, ["epoch", "time"], None),
        (Role.STEP, ["current_steps", "total_steps"], "current_steps"),
        (Role.STEP, ["time/batch", "time/epoch"], "time/batch"),
        (Role.STEP, ["global_step/max_steps"], "global_step/max_steps"),
        (Role.LOSS, ["reduced_train_loss"], "reduced_train_loss"),
        (
            Role.GRAD_NORM,
            ["optim/grad_norm/layer.3", "optim/total_grad_norm"],
            "optim/total_grad_norm",
        ),
        (Role.GRAD_NORM, ["grad_norm_clipped", "grad_norm"], "grad_norm"),
        (Role.GRAD_NORM, ["train/gnorm"], "train/gnorm"),
        (Role.GRAD_NORM, ["l2_norm/grad/global", "l2_norm/grad/wte"], "l2_norm/grad/global"),
        (Role.GRAD_NORM, ["param_norm", "max_grad_norm"], None),
        (Role.LEARNING_RATE, ["lr-AdamW"], "lr-AdamW"),
        (Role.LEARNING_RATE, ["train/learning_rate"], "train/learning_rate"),
        (Role.VALIDATION, ["eval_loss", "eval_accuracy"], "eval_loss"),
        (Role.VALIDATION, ["val/ppl"], None),
        (Role.VALIDATION, ["eval/lm/CrossEntropyLoss"], "eval/lm/CrossEntropyLoss"),
    ],
)
def test_a_role_takes_the_best_name(role, names, wanted):
    columns = Columns()
    columns.decide([names])
    assert columns.found.get(role) == wanted


def test_a_name_in_few_rows_does_not_displace_one_in_most():
    columns = Columns()
    columns.decide([["step", "train/loss"]] * 40 + [["step", "loss"]])
    assert columns.found[Role.LOSS] == "train/loss"


def test_of_names_that_are_as_good_the_first_is_taken():
    names = [f"{word}/loss" for word in ("qq", "ab", "zz", "mm", "kk", "cc")]
    for shift in range(len(names)):
        columns = Columns()
        columns.decide([names[shift:] + names[:shift]] * 9)
        assert columns.found[Role.LOSS] == names[shift]


def test_the_step_is_that_which_stands_beside_the_loss():
    """Regression: DeepSpeed's two lines a step have one name of it each, and no row had both."""
    columns = Columns()
    columns.decide([["step", "skipped", "lr"], ["steps", "loss"]] * 20)
    assert columns.found[Role.STEP] == "steps"


def test_a_role_keeps_its_name_and_an_empty_one_takes_a_later_one():
    columns = Columns()
    columns.decide([["step", "train/loss"]])
    columns.learn(["step", "loss", "val/loss"])
    assert columns.found[Role.LOSS] == "train/loss"
    assert columns.found[Role.VALIDATION] == "val/loss"


def test_given_names_are_not_guessed():
    columns = Columns(given_columns("step=iter, loss=lm loss,grad_norm="))
    columns.decide([["step", "iter", "loss", "lm loss", "grad_norm"]])
    assert columns.found == {Role.STEP: "iter", Role.LOSS: "lm loss"}
    assert columns.missing() == []


@pytest.mark.parametrize("text", ["loss", "lost=x", "loss=a,loss=b", "=", "step=a,,loss=b"])
def test_columns_that_are_none_are_refused(text):
    with pytest.raises(LogError, match="; "):
        given_columns(text)
