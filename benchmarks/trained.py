"""Models in training whose states the benchmarks of checkpoints take: the quickstart's, or GPT-2 in a
published shape over a real text with a vocabulary of GPT-2's size.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import served

from forkcast_trainer.placement import placement
from forkcast_trainer.step import Engine
from forkcast_wire.manifest import TrainingRun

TINY = "gpt2-tiny"
VOCABULARY = 50_257
_CHARACTERS = 16_000_000


def engine(
    model: str,
    folder: Path,
    *,
    batch: int,
    length: int,
    steps: int,
    seed: int = 1,
    tokens: Path | None = None,
) -> Engine:
    """At step 0. tokens: bare ids of GPT-2's vocabulary, 16 bits each, as nanoGPT writes them; without
    them, the words of the standard library's own sources. steps: length of the run.
    """
    if model == TINY:
        document = served.quickstart().document()
        document["spec"]["stressors"] = []
    else:
        document = _document(model, tokens or words(folder))
        document["spec"]["data"]["sequenceLength"] = length
    training: dict[str, Any] = {"totalSteps": steps, "seed": seed}
    if model != TINY:
        training["microBatchSize"] = batch
    document["spec"]["training"].update(training)
    spec = TrainingRun.model_validate(document).spec
    return Engine(spec, served.UID, folder, placement(spec))


def _document(model: str, tokens: Path) -> dict[str, Any]:
    return {
        "apiVersion": "forkcast.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": "benchmark"},
        "spec": {
            "model": {"architecture": model, "size": {"dropout": 0.0}},
            "data": {
                "train": {"uri": str(tokens), "format": "Tokens"},
                "validation": {"maxBatches": 8, "fraction": "0.005"},
                "tokenizer": "bytes",
                "vocabularySize": VOCABULARY,
            },
            "optimizer": {"learningRate": "6e-4", "schedule": {"warmupSteps": 50}},
            "training": {"totalSteps": 1},
        },
    }


def words(folder: Path) -> Path:
    """Ids of the words, blanks and marks of the standard library's sources, the most frequent first: as
    rare as a tokenizer's are. What is not among the vocabulary's words has the last id.
    """
    place = folder / "words.bin"
    found: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts or size > _CHARACTERS:
            continue
        text = path.read_text(errors="ignore")
        size += len(text)
        found += re.findall(r"\w+|\s+|[^\w\s]", text)
    ranks = {word: n for n, (word, _) in enumerate(Counter(found).most_common(VOCABULARY - 2))}
    np.array([ranks.get(word, VOCABULARY - 2) for word in found], np.uint16).tofile(place)
    return place
