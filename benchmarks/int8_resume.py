"""What a resume from moments in 8 bits costs: `python benchmarks/int8_resume.py [--model gpt2] [--json F]`.

For each seed a model is trained some hundred steps and saved. Then it goes on from that state again and
again, over the same batches: exactly, with the lowest bit of one weight flipped (as far apart do two runs
get that differ by nothing: the floor of chaos), from `optimizerState: Int8`, from the same with the
embeddings' moments in 8 bits too, and with moments of zero (as far apart as moments matter). A gap is a
loss less the exact resume's on the same batch, nats/token.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import machine

machine.pin_threads()

import structlog  # noqa: E402
import torch  # noqa: E402
import trained  # noqa: E402
from figures import median  # noqa: E402

from forkcast_trainer.container import read_container, write_container  # noqa: E402
from forkcast_trainer.state import restore, snapshot  # noqa: E402
from forkcast_trainer.step import Engine  # noqa: E402
from forkcast_trainer.table import Role, Snapshot  # noqa: E402

EXACT = "exact"
#: Of AdamW, which these runs have.
ROLES = {"exp_avg": Role.FIRST_MOMENT, "exp_avg_sq": Role.SECOND_MOMENT}


@dataclass(frozen=True)
class Course:
    """losses: of each step after the restore. held: validation losses, by steps after it."""

    losses: list[float]
    held: Mapping[int, float]


def exact(saved: Snapshot, _folder: Path) -> Snapshot:
    """As it was saved."""
    return saved


def one_bit(saved: Snapshot, _folder: Path) -> Snapshot:
    """With the lowest bit of one weight flipped."""
    name = next(n for n in saved.tensors if n.startswith("model.") and "mlp" in n and "weight" in n)
    changed = saved.tensors[name].clone()
    changed.view(-1)[:1].view(torch.int32).bitwise_xor_(1)
    return replace(saved, tensors={**saved.tensors, name: changed})


def int8(saved: Snapshot, folder: Path) -> Snapshot:
    """Through a container, as a checkpoint goes."""
    write_container(saved, folder / "int8.ptz", 1, int8=True)
    return read_container(folder / "int8.ptz")


def int8_all(saved: Snapshot, folder: Path) -> Snapshot:
    """The same with the moments of embeddings, heads and vectors."""
    roles: dict[str, Role] = {}
    for name in saved.tensors:
        slot = name.rpartition(".")[2]
        if slot in ROLES:
            roles[name] = ROLES[slot]
    return int8(replace(saved, roles=roles), folder)


def no_moments(saved: Snapshot, _folder: Path) -> Snapshot:
    """With both moments 0."""
    tensors = {
        name: torch.zeros_like(t) if name.rpartition(".")[2] in ROLES else t
        for name, t in saved.tensors.items()
    }
    return replace(saved, tensors=tensors)


ARMS: Mapping[str, Callable[[Snapshot, Path], Snapshot]] = {
    EXACT: exact,
    "exact again": exact,
    "one bit of a weight flipped": one_bit,
    "Int8": int8,
    "Int8, embeddings and vectors too": int8_all,
    "moments 0": no_moments,
}


def course(engine: Engine, saved: Snapshot, after: list[int]) -> Course:
    """Go on from a state for as many steps as the last of ``after``."""
    restore(engine, saved)
    engine.settle()
    engine.told()  # of the steps before
    losses: list[float] = []
    held: dict[int, float] = {}
    for number in range(1, after[-1] + 2):
        engine.step()
        losses += [stats.loss for stats in engine.told()]
        if number in after:
            held[number] = engine.evaluate()
    engine.settle()
    losses += [stats.loss for stats in engine.told()]
    return Course(losses, held)


def update_error(saved: Snapshot, found: Snapshot) -> float:
    """Relative L2 distance of the next update without its gradient, m / (sqrt(v) + 1e-8)."""
    off = size = 0.0
    for name in saved.tensors:
        if name.endswith(".exp_avg"):
            was, now = (
                one.tensors[name] / (one.tensors[name + "_sq"].sqrt() + 1e-8)
                for one in (saved, found)
            )
            off, size = off + float((now - was).square().sum()), size + float(was.square().sum())
    return (off / size) ** 0.5 if size else 0.0


def of_seed(given: argparse.Namespace, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """By arm and figure."""
    after = sorted(given.after)
    engine = trained.engine(
        given.model,
        folder,
        batch=given.batch,
        length=given.length,
        steps=given.steps + after[-1] + 1,
        seed=seed,
        tokens=given.tokens,
    )
    for _ in range(given.steps):
        engine.step()
    engine.settle()
    saved = snapshot(engine)
    base: Course | None = None
    found: dict[str, dict[str, float]] = {}
    for arm, change in ARMS.items():
        changed = change(saved, folder)
        mine = course(engine, changed, after)
        base = base or mine
        gaps = [a - b for a, b in zip(mine.losses, base.losses, strict=True)]
        row = {"update error": update_error(saved, changed)}
        row |= {f"gap +{n}": gaps[n] for n in after}
        row |= {f"held-out +{n}": mine.held[n] - base.held[n] for n in after}
        row["mean size 0-50"] = sum(map(abs, gaps[:51])) / len(gaps[:51])
        row["largest"] = max(map(abs, gaps))
        found[arm] = row
        print(f"seed {seed}, {arm}: {row}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """0; prints a table of medians over seeds, and of the largest size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=trained.TINY, help="gpt2-tiny, gpt2, gpt2-medium, ...")
    parser.add_argument(
        "--tokens", type=Path, help="nanoGPT's file of ids; else the words of Python"
    )
    parser.add_argument("--steps", type=int, default=300, help="trained before the state is saved")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--after", type=int, nargs="+", default=[1, 50, 200])
    parser.add_argument("--batch", type=int, default=8, help="sequences a step, but of gpt2-tiny")
    parser.add_argument("--length", type=int, default=512, help="tokens of one, but of gpt2-tiny")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory(dir=machine.memory_folder()) as name:
        seeds = [of_seed(given, seed, Path(name)) for seed in range(1, given.seeds + 1)]
    figures = list(seeds[0][EXACT])
    print(f"{given.model}, {given.steps} steps, {given.seeds} seeds: median (largest size)")
    print("| | " + " | ".join(figures) + " |\n|---" + "|---" * len(figures) + "|")
    rows = []
    for arm in ARMS:
        columns = {name: [seed[arm][name] for seed in seeds] for name in figures}
        cells = [f"{median(c):+.2g} ({max(map(abs, c)):.2g})" for c in columns.values()]
        print(f"| {arm} | " + " | ".join(cells) + " |")
        rows.append({"arm": arm, **columns})
    if given.json:
        document = {"machine": machine.described(), "model": given.model, "rows": rows}
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
