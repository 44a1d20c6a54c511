"""Seeded disturbances, off by default. To add one: a file here, and a line in STRESSORS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forkcast_trainer.stressors.aggressive_warmup import AggressiveWarmup
from forkcast_trainer.stressors.base import DataStressor, RateStressor
from forkcast_trainer.stressors.block_shuffle import BlockShuffle
from forkcast_trainer.stressors.long_sequence import LongSequence
from forkcast_trainer.stressors.rare_token_burst import RareTokenBurst
from forkcast_trainer.stressors.text_artifacts import TextArtifacts
from forkcast_wire.manifest import Stressor, StressorType

STRESSORS: Mapping[StressorType, type[DataStressor | RateStressor]] = {
    StressorType.RARE_TOKEN_BURST: RareTokenBurst,
    StressorType.LONG_SEQUENCE: LongSequence,
    StressorType.TEXT_ARTIFACTS: TextArtifacts,
    StressorType.BLOCK_SHUFFLE: BlockShuffle,
    StressorType.AGGRESSIVE_WARMUP: AggressiveWarmup,
}


def make(
    specs: Sequence[Stressor], tokenizer: str
) -> tuple[list[DataStressor], list[RateStressor]]:
    """The stressors of a manifest, by what they act on; ``tokenizer``: the run's own.

    Raises DataError if the tokenizer cannot be opened.
    """
    built = [STRESSORS[spec.type](spec) for spec in specs]
    for one in built:
        if isinstance(one, TextArtifacts):
            one.tokenise(tokenizer)
    return (
        [one for one in built if isinstance(one, DataStressor)],
        [one for one in built if isinstance(one, RateStressor)],
    )
