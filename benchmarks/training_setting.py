"""What the trainer's contestants share: one model, one file of ids, one order of windows, one AdamW."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.data.batches import Windows
from forkcast_trainer.data.sampler import permuted
from forkcast_trainer.data.tokens import prepare
from forkcast_trainer.models import family_for
from forkcast_trainer.models.family import Shape
from forkcast_wire.manifest import TrainingRun

VOCABULARY = 50_257
RATE, BETAS, DECAY, CLIP = 3e-4, (0.9, 0.95), 0.1, 1.0
SEED = 1
#: More steps than any contestant takes: their turns end them.
ENDLESS = 1_000_000
_IDS = 4_000_000
_DTYPES = {"float32": "Float32", "bfloat16": "BFloat16", "float16": "Float16"}


@dataclass(frozen=True)
class Setting:
    """What is trained. batch: windows a step of a process. length: tokens of a window. padded: nanoGPT
    rounds the vocabulary up to a multiple of 64, as its train.py does; all others say what they are asked.
    """

    model: str
    batch: int
    length: int
    dtype: str
    device: str
    compile: bool
    tokens: Path
    weights: Path
    nanogpt: Path | None = None
    processes: int = 1
    padded: bool = True

    def written(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), default=str)

    @staticmethod
    def read(line: str) -> Setting:
        """What `written` gave."""
        found = json.loads(line)
        for name in ("tokens", "weights", "nanogpt"):
            found[name] = None if found[name] is None else Path(found[name])
        return Setting(**found)

    def manifest(self, *, clipping: str = "Norm", statistics: bool = True) -> TrainingRun:
        """A run of ours. statistics: at their defaults; else as seldom as the manifest has it. The run
        validates only after its end, as the others do not validate.
        """
        document: dict[str, Any] = {
            "apiVersion": "forkcast.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": "benchmark"},
            "spec": {
                "model": {
                    "architecture": self.model,
                    "size": {"dropout": 0.0},
                    "dtype": _DTYPES[self.dtype],
                    "device": "Cuda" if self.device == "cuda" else "Cpu",
                    "compile": self.compile,
                },
                "data": {
                    "train": {"uri": str(self.tokens), "format": "Tokens"},
                    "validation": {
                        "maxBatches": 1,
                        "fraction": "0.005",
                        "everySteps": ENDLESS,
                        "fullEverySteps": ENDLESS,
                    },
                    "tokenizer": "bytes",
                    "vocabularySize": VOCABULARY,
                    "sequenceLength": self.length,
                },
                "optimizer": {
                    "learningRate": str(RATE),
                    "weightDecay": str(DECAY),
                    "betas": [str(beta) for beta in BETAS],
                    "schedule": {"type": "Constant", "warmupSteps": 0},
                    "clipping": {"policy": clipping},
                },
                "training": {
                    "totalSteps": ENDLESS,
                    "microBatchSize": self.batch,
                    "seed": SEED,
                },
                "parallelism": {"processesPerNode": self.processes},
                "branching": {"mode": "Observe"},
            },
        }
        if not statistics:
            seldom = {"internalsEverySteps": 10_000, "updateEverySteps": 10_000}
            document["spec"]["statistics"] = seldom
        return TrainingRun.model_validate(document)

    def shape(self) -> Shape:
        """Of the model. Raises ValueError if nothing is known of it."""
        model = self.manifest().spec.model
        shape = family_for(model).shape(model, VOCABULARY, self.length)
        if shape is None:
            raise ValueError(f"{self.model}: no shape")
        return shape

    def flops_a_token(self) -> float:
        """As nanoGPT counts them: 6 a parameter but those of positions, and attention."""
        shape = self.shape()
        n = shape.parameters - shape.positions * shape.width
        return float(6 * n + 12 * shape.layers * shape.width * self.length)


class Rows:
    """The windows of the run in its own order, [length + 1] ids each: window n is the n-th that ours
    takes.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        data = setting.manifest().spec.data
        self._text = Windows(prepare(data, folder / "tokens", progress=False).train, setting.length)
        self._seed, self._length = data.shuffle_seed, setting.length

    def read(self, first: int, count: int) -> NDArray[np.int64]:
        """[count, length + 1]."""
        ids = [self._window(number) for number in range(first, first + count)]
        return self._text.read(np.array(ids), self._length)

    def _window(self, number: int) -> int:
        epoch, place = divmod(number, self._text.windows)
        at = np.array([place], dtype=np.uint64)
        return int(permuted(at, self._text.windows, self._seed, epoch)[0])


def write_ids(path: Path, count: int = _IDS) -> None:
    """Random ids that can be learnt in part: half of them follow from the one before, the others are
    drawn by Zipf's law. 16 bits each, as nanoGPT writes them.
    """
    chosen = np.random.default_rng(SEED)
    ranks = np.exp(chosen.random(count) * np.log(VOCABULARY)).astype(np.int64) % VOCABULARY
    follows = chosen.random(count) < 0.5
    for place in range(1, 4):  # runs of up to four that follow one another
        mine = follows & (np.arange(count) % 4 == place)
        ranks[mine] = (np.roll(ranks, 1)[mine] * 7919 + 1) % VOCABULARY
    ranks.astype(np.uint16).tofile(path)


def write_weights(setting: Setting, folder: Path) -> None:
    """Ours at step 0 as a Hugging Face folder for the others, and the card of the ids, so that no start
    that is timed reads them.
    """
    from forkcast_trainer import learner
    from forkcast_trainer.export import hugging_face

    spec = setting.manifest().spec
    tokens = prepare(spec.data, folder / "tokens", progress=False)
    module = learner.make(spec, tokens.vocabulary_size).module
    hugging_face(spec, dict(module.named_parameters()), setting.weights)
