"""The formats of logs that `forkcast detect` reads: a shelf, a format is one file and one line.

A format is a module with a `FORMAT`: a TextFormat, which reads a line at a time, or a WholeFormat, which
knows a file by its first bytes. Order matters in TEXT: a format comes before those
that would read its lines, too, and understand less of them.
"""

from __future__ import annotations

from typing import Final

from forkcast_cli.logs import (
    build_nanogpt,
    build_nanogpt_log,
    composer,
    delimited,
    fairseq,
    json_lines,
    key_values,
    llmc,
    llmc_log,
    maxtext,
    megatron,
    modded_nanogpt,
    nanogpt,
    olmo,
    parquet,
    tensorboard,
    torchtitan,
    trainer_state,
    trainer_stdout,
    wandb_export,
    wandb_offline,
)
from forkcast_cli.logs.base import TextFormat, WholeFormat

WHOLE: Final[tuple[WholeFormat, ...]] = (
    parquet.FORMAT,
    wandb_offline.FORMAT,
    tensorboard.FORMAT,
    trainer_state.FORMAT,
)

TEXT: Final[tuple[TextFormat, ...]] = (
    nanogpt.FORMAT,
    build_nanogpt.FORMAT,
    build_nanogpt_log.FORMAT,
    llmc_log.FORMAT,
    llmc.FORMAT,
    modded_nanogpt.FORMAT,
    megatron.FORMAT,
    torchtitan.FORMAT,
    maxtext.FORMAT,
    olmo.FORMAT,
    composer.FORMAT,
    fairseq.FORMAT,
    trainer_stdout.FORMAT,
    json_lines.FORMAT,
    wandb_export.FORMAT,
    delimited.FORMAT,
    key_values.FORMAT,
)
