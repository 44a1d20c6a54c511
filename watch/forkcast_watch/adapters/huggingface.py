"""Hugging Face Trainer, and what builds on it (TRL).

The loss of a step is what `training_step` returns, summed over the micro-batches: `Trainer` has divided it
by their number, or by the tokens of them all, and by default shows the mean in place of one that is not
finite. A callback is not given the trainer: without `set_trainer` the loss is the model's own output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Trainer, TrainerCallback

from forkcast_watch.ranks import place
from forkcast_watch.session import Watch
from forkcast_watch.settings import Settings, WatchError, name_of
from forkcast_watch.tolerance import log
from forkcast_watch.unsaved import Unsaved


def watch(subject: Trainer, optimizer: Any, settings: Settings) -> WatchCallback:
    """Watch each `train()` of a trainer. Raises WatchError."""
    if optimizer is not None:
        raise WatchError("optimizer", "the trainer has its own", "leave it out")
    callback = WatchCallback.of(settings)
    callback.set_trainer(subject)
    subject.add_callback(callback)
    return callback


class WatchCallback(TrainerCallback):  # type: ignore[misc]  # as mypy sees it without transformers
    """For `Trainer(callbacks=[...])`; settings: see Settings. The folder is <output_dir>/forkcast by
    default. It watches from the begin of `train()` to its end, or to an exception in a step.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = Settings(**settings)
        self._trainer: Trainer | None = None
        self.watch: Watch | None = None
        self._losses: list[Tensor] = []
        self._scaled = True
        self._tokens = 0
        self._undo: Callable[[], None] = _nothing

    @classmethod
    def of(cls, settings: Settings) -> WatchCallback:
        """With settings that have been checked."""
        made = cls()
        made._settings = settings
        return made

    def set_trainer(self, trainer: Trainer) -> None:
        """Take the loss from this trainer's steps."""
        self._trainer = trainer

    # -------------------------------------------------------------------------------- the callback

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Attach to the model as it is trained: prepared, on its device."""
        del control
        self.close()
        given = self._settings
        output = Path(args.output_dir)
        settings = replace(
            given,
            folder=given.folder or output / "forkcast",
            name=given.name or name_of(output),
            start_step=state.global_step,
            total_steps=given.total_steps or max(state.max_steps, 1),
        )
        wrapped = getattr(self._trainer, "model_wrapped", model)
        self.watch = Watch(wrapped, optimizer, settings)
        if self._trainer is None:
            self._undo = self._on_model(args, model)
            return
        undo_step, undo_clipping = self._on_trainer(), self._on_clipping()

        def undo() -> None:
            undo_clipping()
            undo_step()

        self._undo = undo

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An optimizer step has ended."""
        del args, state, control
        if self.watch is None:
            return
        losses, self._losses = self._losses, []
        tokens, self._tokens = self._tokens, 0
        loss = None
        if losses:
            total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
            loss = total if self._scaled else total / len(losses)
        self.watch.ended(loss, tokens or None)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """The evaluation's loss belongs to the last step."""
        del args, state, control
        if self.watch is not None and metrics and "eval_loss" in metrics:
            self.watch.validation(metrics["eval_loss"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Detach."""
        del args, state, control
        self.close()

    def close(self) -> None:
        """Detach: the trainer is as it was. Idempotent."""
        undo, self._undo = self._undo, _nothing
        undo()
        self._losses = []
        if self.watch is not None:
            self.watch.close()

    # ------------------------------------------------------------------------------------ the loss

    def _on_trainer(self) -> Callable[[], None]:
        """Read what `training_step` returns, whoever has overridden it; returns what undoes that."""
        trainer: Any = self._trainer
        original = trainer.training_step

        def training_step(model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            tokens = _count(inputs)
            try:
                loss = original(model, inputs, *more, **named)
            except BaseException:
                self.close()  # no callback is told of it
                raise
            self._losses.append(loss.detach().clone())  # here, where the device is behind
            self._tokens += tokens
            return loss

        self._scaled = True
        return _replaced(trainer, "training_step", training_step)

    def _on_clipping(self) -> Callable[[], None]:
        """The norm that clipping has measured need not be measured twice; returns what undoes that."""
        accelerator: Any = getattr(self._trainer, "accelerator", None)
        original = getattr(accelerator, "clip_grad_norm_", None)
        if original is None:
            return _nothing

        def clip_grad_norm_(
            parameters: Any, max_norm: float, norm_type: float = 2, *more: Any, **named: Any
        ) -> Any:
            total = original(parameters, max_norm, norm_type, *more, **named)
            if self.watch is not None and norm_type == 2 and type(total) is Tensor:
                self.watch.clipped(total, max_norm)
            return total

        return _replaced(accelerator, "clip_grad_norm_", clip_grad_norm_)

    def _on_model(self, args: Any, model: nn.Module) -> Callable[[], None]:
        """Read the loss that the model gives, as `Trainer.compute_loss` does if nobody overrides it."""
        log.info("the loss is the model's own; set_trainer makes it the trainer's")
        ranks = place()[1] if args.average_tokens_across_devices else 1

        def passed(module: nn.Module, _: Any, named: dict[str, Any], output: Any) -> None:
            if not (module.training and torch.is_grad_enabled()):
                return
            loss = output.get("loss") if isinstance(output, dict) else None
            if isinstance(loss, Tensor) and loss.numel() == 1:
                self._scaled = named.get("num_items_in_batch") is not None
                self._losses.append(loss.detach() * (ranks if self._scaled else 1))  # a new one
                self._tokens += _count(named)

        handle: RemovableHandle = model.register_forward_hook(Unsaved(passed), with_kwargs=True)
        return handle.remove


def _count(inputs: Any) -> int:
    """Tokens of a micro-batch over all ranks, taken to be alike; 0 if there is no saying."""
    ids = inputs.get("input_ids") if hasattr(inputs, "get") else None
    return ids.numel() * place()[1] if isinstance(ids, Tensor) else 0


def _replaced(subject: Any, name: str, made: Callable[..., Any]) -> Callable[[], None]:
    """Put a method on one object; returns what takes it off, if nobody has put another over it."""
    former = subject.__dict__.get(name)
    setattr(subject, name, made)

    def undo() -> None:
        if subject.__dict__.get(name) is made:
            delattr(subject, name)
            if former is not None:
                setattr(subject, name, former)

    return undo


def _nothing() -> None:
    return None
