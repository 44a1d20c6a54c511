"""progress.json: how far the run is, for readers of its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from forkcast_trainer.step import ActionState, Position
from forkcast_wire import beats
from forkcast_wire.files import replace_bytes

_log = structlog.get_logger()
_SECONDS = 0.5


class Progress:
    """Writes the file by atomic replace, at most twice a second while only numbers change."""

    def __init__(self, workdir: Path, total_steps: int, device: str, tokens: int) -> None:
        """tokens: those seen before this attempt; the speed is of its steps, waiting not counted."""
        self._path = workdir / "progress.json"
        self._total_steps, self._device, self._tokens = total_steps, device, tokens
        self._seconds, self._looked = 0.0, time.monotonic()
        self.word, self._told = "", 0.0

    def tell(
        self,
        word: str,
        position: Position,
        actions: ActionState,
        *,
        rate: float,
        passes: Mapping[str, float],
        validation_loss: float | None,
        dropped: int,
        saved_step: int | None,
        saves_skipped: int,
        save_error: str,
        history_gap: str,
        end_error: str,
        force: bool = False,
    ) -> None:
        """word: running, held, ending (the last step is taken, and the store does not take the end now),
        unrecorded (it left so), stopped or finished. passes: how often each text has been seen. saved_step:
        of the newest durable state of the epoch, or the one it was resumed from; None if there is none.
        saves_skipped: saves of this attempt that were due and never made. save_error: why the last save
        failed, '' if it did not. history_gap: what the history lacks of the steps before the newest
        state, '' if nothing. end_error: why the run's end is not recorded yet, '' if it is not due or
        is recorded. hang_seconds in the
        file is the limit in force. A disk that refuses is logged, no more.
        """
        now = time.monotonic()
        if word == "running" and self.word != "held":
            self._seconds += now - self._looked
        self._looked = now
        if not force and word == self.word and now - self._told < _SECONDS:
            return
        self.word, self._told = word, now
        speed = (position.tokens - self._tokens) / max(self._seconds, 1e-9)
        document = {
            "state": word,
            "epoch": position.epoch,
            "attempt": position.attempt,
            "step": position.step,
            "total_steps": self._total_steps,
            "loss": position.loss,
            "validation_loss": validation_loss,
            "tokens": position.tokens,
            "tokens_per_second": round(speed, 1),
            "passes": {name: round(count, 4) for name, count in passes.items()},
            "learning_rate": rate,
            "learning_rate_factor": actions.learning_rate_factor,
            "weight_decay_factor": actions.weight_decay_factor,
            "clipping": actions.clipping,
            "device": self._device,
            "dropped": dropped,
            "saved_step": saved_step,
            "saves_skipped": saves_skipped,
            "save_error": save_error,
            "history_gap": history_gap,
            "end_error": end_error,
            "hang_seconds": round(beats.limit(), 1),
        }
        try:
            replace_bytes(self._path, json.dumps(document).encode(), durable=False)
        except OSError as error:
            _log.warning("train.progress_not_written", error=str(error))
