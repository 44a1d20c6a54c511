"""Action to state: the only place where an action changes anything."""

from __future__ import annotations

import hashlib

from forkcast.actions import KEEP, Action
from forkcast_trainer import optimizers
from forkcast_trainer.step import Engine


def apply(engine: Engine, action: Action) -> None:
    """Apply an action to the state that a branch starts from. Factors multiply what is in force."""
    state = engine.actions
    state.learning_rate_factor *= action.learning_rate_scale
    state.weight_decay_factor *= action.weight_decay_scale
    if action.clipping != KEEP:
        state.clipping = action.clipping
        engine.clipping = engine.make_clipping(action.clipping)
    if action.momentum_reset:
        optimizers.reset(engine.optimizer)
        state.reset_at = engine.position.step
    if action.data_reorder:
        text = f"{engine.sampler.state.seed}:{engine.position.step}"
        engine.sampler.reorder(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]))
    if action.skip_batches:
        training = engine.spec.training
        windows = training.micro_batch_size * training.gradient_accumulation_steps
        engine.sampler.skip(action.skip_batches * windows * engine.shards)
