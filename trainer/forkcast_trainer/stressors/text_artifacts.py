"""Unicode and segmentation artifacts: text as broken pipelines really deliver it."""

from __future__ import annotations

import numpy as np

from forkcast_trainer.data.tokenizer import open_tokenizer
from forkcast_trainer.stressors.base import DataStressor, Ids, Text
from forkcast_wire.manifest import Stressor

_WORDS = "The quick naïve café résumé -- “quoted” text, Größe, señor, Straße, 東京, привет, שלום "


def mangled_pool() -> str:
    """Mojibake, zero-width characters, lost spaces, split letters and runs of replacement marks."""
    pieces = [
        _WORDS.encode().decode("latin-1"),
        _WORDS.encode().decode("latin-1").encode().decode("latin-1"),
        "\u200b".join(_WORDS),
        _WORDS.replace(" ", ""),
        " ".join(_WORDS),
        "\ufffd" * 64,
        "".join(c + "\u0301\u0323" for c in _WORDS),
        _WORDS.encode("utf-16-le").decode("latin-1"),
    ]
    return "".join(piece * 8 for piece in pieces)


class TextArtifacts(DataStressor):
    """At a struck step the batch is cut from the pool of mangled text at drawn places."""

    def __init__(self, spec: Stressor) -> None:
        super().__init__(spec)
        self._pool = open_tokenizer("bytes").encode(mangled_pool()).astype(np.int64)

    def tokenise(self, tokenizer: str) -> None:
        """Make the pool of the run's own tokenizer. Raises DataError."""
        self._pool = open_tokenizer(tokenizer).encode(mangled_pool()).astype(np.int64)

    def batch(self, step: int, batch: Ids, text: Text) -> Ids:  # noqa: ARG002
        """[count, length + 1] ids of mangled text."""
        if not self.strikes(step):
            return batch
        starts = self.generator(step).integers(0, len(self._pool), size=len(batch))
        places = (starts[:, None] + np.arange(batch.shape[1])[None, :]) % len(self._pool)
        chosen: Ids = self._pool[places]
        return chosen
