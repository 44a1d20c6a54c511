"""PyTorch Lightning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from forkcast_watch.session import Watch
from forkcast_watch.settings import Settings, WatchError, name_of


def watch(subject: Trainer, optimizer: Any, settings: Settings) -> WatchCallback:
    """Watch each `fit` of a trainer. Raises WatchError."""
    if optimizer is not None:
        raise WatchError("optimizer", "the module has its own", "leave it out")
    callback = WatchCallback.of(settings)
    subject.callbacks.append(callback)
    return callback


class WatchCallback(Callback):  # type: ignore[misc]  # as mypy sees it without lightning
    """For `Trainer(callbacks=[...])`; settings: see Settings. The folder is <default_root_dir>/forkcast by
    default. It watches the first optimizer of the module from the begin of training to its end, or to an
    exception. validation_metric: the name under which the module logs its validation loss.
    """

    def __init__(self, *, validation_metric: str = "val_loss", **settings: Any) -> None:
        self._settings = Settings(**settings)
        self._metric = validation_metric
        self.watch: Watch | None = None
        self._steps = 0

    @classmethod
    def of(cls, settings: Settings) -> WatchCallback:
        """With settings that have been checked."""
        made = cls()
        made._settings = settings
        return made

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the module as it is trained: on its device, its optimizers made or loaded."""
        self.close()
        given = self._settings
        root = Path(trainer.default_root_dir)
        self._steps = trainer.global_step
        settings = replace(
            given,
            folder=given.folder or root / "forkcast",
            name=given.name or name_of(root.absolute()),
            start_step=self._steps,
            total_steps=given.total_steps or (trainer.max_steps if trainer.max_steps > 0 else None),
            scaler=given.scaler or getattr(trainer.precision_plugin, "scaler", None),
        )
        self.watch = Watch(pl_module, trainer.optimizers[0], settings, called=False)

    def on_train_batch_start(self, *_: Any) -> None:
        """The module's forward pass is somewhere in its `training_step`."""
        if self.watch is not None:
            self.watch.forward_begins()

    def on_before_backward(self, *_: Any) -> None:
        """The forward pass is over."""
        if self.watch is not None:
            self.watch.forward_ends()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """A micro-batch, and with it perhaps a step. Lightning has divided the loss."""
        del pl_module
        if self.watch is None:
            return
        self.watch.forward_ends()
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.watch.micro_batch(loss * trainer.accumulate_grad_batches)
        if trainer.global_step != self._steps:
            self._steps = trainer.global_step
            self.watch.step()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation's loss belongs to the last step."""
        del pl_module
        loss = trainer.callback_metrics.get(self._metric)
        if self.watch is not None and loss is not None and not trainer.sanity_checking:
            self.watch.validation(float(loss))

    def on_train_end(self, *_: Any) -> None:
        """Detach."""
        self.close()

    def on_exception(self, *_: Any) -> None:
        """Detach."""
        self.close()

    def close(self) -> None:
        """Detach: nothing of it is left. Idempotent."""
        if self.watch is not None:
            self.watch.close()
