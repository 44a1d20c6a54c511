"""PyTorch Lightning, watched: one line.

python examples/watch/lightning_module.py --unstable
"""

from __future__ import annotations

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer
from nanogpt_loop import BATCH, BLOCK, GPT, TEXT
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import forkcast


class Language(LightningModule):
    """nanoGPT's model; with `wild_from` the learning rate is 1000 times too high from that step on."""

    def __init__(self, vocabulary: int, wild_from: int | None) -> None:
        super().__init__()
        self.gpt, self.wild_from = GPT(vocabulary), wild_from

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss of [batch, block + 1] ids."""
        (ids,) = batch
        return self.gpt(ids[:, :-1], ids[:, 1:])

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW at a constant rate."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-4)

        def factor(step: int) -> float:
            return 1000.0 if self.wild_from is not None and step >= self.wild_from else 1.0

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    """Train; with --unstable the learning rate is too high from the last fifth on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", default="runs/lightning-module")
    parser.add_argument("--unstable", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    letters = sorted(set(TEXT))
    ids = torch.tensor([letters.index(one) for one in TEXT])
    rows = torch.stack([ids[i : i + BLOCK + 1] for i in range(len(ids) - BLOCK)])
    loader = DataLoader(TensorDataset(rows), batch_size=BATCH, shuffle=True)
    trainer = Trainer(
        max_steps=given.steps,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=given.folder,
    )
    callback = forkcast.watch(trainer)  # the line
    trainer.fit(Language(len(letters), given.steps * 4 // 5 if given.unstable else None), loader)
    print(f"{len(callback.watch.events)} events; forkcast status {callback.watch.folder}")


if __name__ == "__main__":
    main()
