"""What a manifest asks for, before anything runs: steps, memory, bytes, the cost of a branch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from forkcast import ladder
from forkcast.retention import log_spaced_steps
from forkcast_cli import rate
from forkcast_cli.shapes import ModelPlan, plan_model, tokens_per_step
from forkcast_trainer.data.files import source_files
from forkcast_trainer.data.s3_text import SCHEME
from forkcast_trainer.errors import DataError
from forkcast_wire.manifest import Mode, TextFormat, TrainingRun, TrainingRunSpec

#: Of the state, in memory, while it is saved; the trainer's staging has as many buffers, a test says.
COPIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """processes: trainers of the run. concurrent: trainers and rollouts alive at once.
    *_bytes: upper estimates, uncompressed. branch_steps_*: rollout steps of one branch, from the
    newest and from the deepest base states. learning_rate: its course, a sentence. model: None if its shape is not known from here.
    """

    total_steps: int
    tokens_per_step: int
    total_tokens: int
    learning_rate: str
    model: ModelPlan | None
    train_flops: float | None
    processes: int
    concurrent: int
    memory_bytes: int | None
    checkpoints_kept: int
    ring_kept: int
    kept_for_life: int
    store_bytes: int | None
    ring_bytes: int | None
    copy_bytes: int | None
    rollouts: int
    branch_steps_least: int
    branch_steps_most: int
    branches_most: int
    text_files: int | None
    text_bytes: int | None
    token_bytes: int | None

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def plan(manifest: TrainingRun) -> Plan:
    """The plan of a run, from the manifest and the sizes of its text; nothing is built or read."""
    spec = manifest.spec
    model = plan_model(spec)
    tokens = tokens_per_step(spec)
    branching = spec.branching.mode in (Mode.DRY_RUN, Mode.ENFORCE)
    processes = spec.parallelism.processes
    concurrent = processes + (spec.branching.max_concurrent_rollouts if branching else 0)
    least, most = branch_steps(spec) if branching else (0, 0)
    kept = spec.checkpoint.keep_last + len(spec.checkpoint.pinned)
    for_life = len(log_spaced_steps(spec.training.total_steps, spec.checkpoint.log_spaced_from))
    state = model.state_bytes if model is not None else None
    total = spec.training.total_steps * tokens
    return Plan(
        total_steps=spec.training.total_steps,
        tokens_per_step=tokens,
        total_tokens=total,
        learning_rate=rate.course(spec),
        model=model,
        train_flops=6.0 * model.parameters * total if model is not None else None,
        processes=processes,
        concurrent=concurrent,
        memory_bytes=model.memory_bytes * concurrent if model is not None else None,
        checkpoints_kept=kept,
        ring_kept=spec.checkpoint.ring_keep,
        kept_for_life=for_life,
        store_bytes=state * (kept + for_life) if state is not None else None,
        ring_bytes=state * spec.checkpoint.ring_keep if state is not None else None,
        copy_bytes=state * COPIES if state is not None else None,
        rollouts=_rollouts(spec) if branching else 0,
        branch_steps_least=least,
        branch_steps_most=most,
        branches_most=spec.branching.budget.max_branches if branching else 0,
        **_text(spec, model.vocabulary if model is not None else None),
    )


def _text(spec: TrainingRunSpec, vocabulary: int | None) -> dict[str, int | None]:
    """Files and bytes of the training text; a token is at least a byte of it."""
    files = found = read = 0
    for field, source in spec.data.texts():
        try:
            files_of = [] if source.uri.startswith(SCHEME) else source_files(source, field)
            sizes = [path.stat().st_size for path in files_of]
        except (DataError, OSError):
            sizes = []
        if not sizes:
            return {"text_files": None, "text_bytes": None, "token_bytes": None}
        files, found = files + len(sizes), found + sum(sizes)
        if source.format is not TextFormat.TOKENS:  # these are used where they are
            read += min(sum(sizes), source.max_bytes or sum(sizes))
    width = 2 if vocabulary is not None and vocabulary <= 1 << 16 else 4
    return {"text_files": files, "text_bytes": found, "token_bytes": width * read}


def _rollouts(spec: TrainingRunSpec) -> int:
    return 1 if spec.branching.policy == "Ladder" else spec.branching.top_k + 1


def branch_steps(spec: TrainingRunSpec) -> tuple[int, int]:
    """Least and most rollout steps of one branch.

    Least: one candidate beside the control, each from the newest ring state, to the first rung. Most: every
    finalist starts at the deepest base and reaches the last rung, and the confirmed ones go on.
    """
    rules = spec.branching
    runners = rules.top_k + 1
    first, last = rules.rungs[0], rules.rungs[-1]
    deepest = min(max(rules.rollback.depths), rules.rollback.steps)
    deepest += spec.checkpoint.ring_every_steps
    if rules.policy == "Ladder":
        return ladder.RUNG, deepest + ladder.RUNG
    confirmed = min(rules.confirm.finalists, rules.top_k) + 1
    longer = max(rules.confirm.steps - last, 0) * confirmed
    return 2 * first, runners * (deepest + last) + longer


def lines(planned: Plan) -> list[tuple[str, str]]:
    """(what, figure) for people."""
    model = planned.model
    out = [
        (
            "steps",
            (
                f"{planned.total_steps:,} of {planned.tokens_per_step:,} tokens = "
                f"{planned.total_tokens:,} tokens"
            ),
        ),
        ("learning rate", planned.learning_rate),
    ]
    if model is None:
        out.append(("model", "its shape is known only when it is loaded"))
    else:
        out += [
            (
                "model",
                (
                    f"{model.parameters:,} parameters ({model.layers} layers, width {model.width}, "
                    f"{model.vocabulary:,} ids)"
                ),
            ),
            ("training", f"{planned.train_flops:.3g} FLOPs (6 x parameters x tokens)"),
            (
                "memory",
                (
                    f"about {size(model.memory_bytes)} a process, {planned.concurrent} at once, plus "
                    "the libraries"
                ),
            ),
            (
                "checkpoints",
                (
                    f"{size(model.state_bytes)} each before compression; {planned.checkpoints_kept} "
                    f"kept and {planned.kept_for_life} for life = {size(planned.store_bytes or 0)}, "
                    f"ring {size(planned.ring_bytes or 0)}"
                ),
            ),
            (
                "saving",
                f"one process holds up to {COPIES} copies in host memory, {size(planned.copy_bytes or 0)}",
            ),
        ]
    if planned.text_bytes is not None:
        said = (
            f"{planned.text_files:,} files, {size(planned.text_bytes)}; token file up to "
            f"{size(planned.token_bytes or 0)} (more if the text is compressed), read piece by piece"
        )
        out.append(("text", said))
    if planned.rollouts:
        out.append(
            (
                "a branch",
                (
                    f"at most {planned.rollouts} rollouts, {planned.branch_steps_least:,} to "
                    f"{planned.branch_steps_most:,} steps; at most {planned.branches_most} branches"
                ),
            )
        )
    else:
        out.append(("a branch", "none: the mode opens no branches"))
    return out


def size(count: float) -> str:
    """Bytes for people, powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
