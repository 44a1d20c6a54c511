"""Which saved states stay, and which of them a branch forks from. Pure.

A state at step s is what step s starts from. The loss of step s is taken with that state's weights,
so a state at the first step of a departure is already part of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from forkcast.lineage import LineageEntry, limits
from forkcast.records import StateRef

#: How many log-spaced states stay beyond the last ones.
_OLDER = 4


def keep(
    states: Sequence[StateRef],
    *,
    keep_last: int,
    pinned_steps: Collection[int] = (),
    pins: Collection[str] = (),
    log_spaced_from: int = 0,
) -> set[str]:
    """Keys of the states that stay: whatever is pinned, the pinned steps, the last ``keep_last``
    (>= 1), the last known good one, up to four older ones, one in each doubling of age, so that a
    slow drift cannot contaminate all that is left, and whatever its age the first of each of
    `log_spaced_steps` (log_spaced_from: their ``first``, 0 for none).
    """
    if keep_last < 1:
        raise ValueError(f"retention: keep_last must be >= 1; got {keep_last=}")
    ordered = sorted(states, key=_by_age)
    stay = {ref.key for ref in ordered[-keep_last:]}
    stay |= {ref.key for ref in ordered if ref.key in pins or ref.step in pinned_steps}
    good = [ref.key for ref in ordered if ref.good]
    stay |= set(good[-1:]) | _log_spaced(ordered, keep_last)
    return stay | _for_life(ordered, log_spaced_from)


def _by_age(ref: StateRef) -> tuple[int, int, int]:
    return (ref.epoch, ref.step, ref.attempt)


def _log_spaced(ordered: Sequence[StateRef], keep_last: int) -> set[str]:
    """The oldest state of each doubling of age; it moves up one bucket in time, where the next
    older one has left, so the spread holds however often this is called.
    """
    oldest: dict[int, str] = {}
    for ref in ordered[:-keep_last]:
        # after a rewind an older epoch may stand at later steps: they count as new
        age = max(ordered[-1].step - ref.step, 0)
        oldest.setdefault(age.bit_length(), ref.key)
    return {oldest[bucket] for bucket in sorted(oldest, reverse=True)[:_OLDER]}


def is_log_spaced(step: int, first: int) -> bool:
    """Whether a state of this step is kept for the life of the run: 0, first, 2 first, 4 first ...;
    first 0: none is.
    """
    doublings, rest = divmod(step, first) if first else (3, 0)
    return rest == 0 and doublings & (doublings - 1) == 0


def log_spaced_steps(total: int, first: int) -> tuple[int, ...]:
    """The steps up to ``total`` whose states are kept for the life of the run."""
    found = [0] if first else []
    step = first
    while 0 < step <= total:
        found.append(step)
        step *= 2
    return tuple(found)


def _for_life(ordered: Sequence[StateRef], first: int) -> set[str]:
    """Of each log-spaced step the first state at or after it and before the next such step: a save
    may come late. After a rewind there may be two: the first of all, and the newest epoch's first.
    """
    found: dict[int, StateRef] = {}
    newest: dict[int, StateRef] = {}
    for ref in ordered if first else ():
        of = (ref.step // first).bit_length()
        if of not in found or ref.step <= found[of].step:
            found[of] = ref
        if of not in newest or (newest[of].epoch, ref.step) <= (ref.epoch, newest[of].step):
            newest[of] = ref
    return {ref.key for ref in (*found.values(), *newest.values())}


def of_lineage(
    states: Sequence[StateRef], entries: Sequence[LineageEntry], epoch: int
) -> tuple[StateRef, ...]:
    """The states that the lineage of ``epoch`` passed through: its own, and of each earlier epoch
    those up to the base of every collapse after it. What lies beyond was abandoned.
    """
    last_step = limits(entries, epoch)
    return tuple(
        ref
        for ref in states
        if ref.epoch == epoch or (ref.epoch < epoch and ref.step <= last_step.get(ref.epoch, -1))
    )


def choose_bases(
    states: Sequence[StateRef], *, before_step: int, depths: Sequence[int], oldest: int
) -> tuple[StateRef, ...]:
    """The base states of a branch, newest first, distinct in step.

    Only states strictly before the departure at ``before_step`` count, and none older than step
    ``oldest``. The first base is the newest of them; each depth adds the newest that lies at least
    that many steps before the departure, the oldest if none does; or a known good one instead, unless
    that is more than twice as old. Of two states at one step a known good one is taken. Empty where no state is usable.
    """
    usable: dict[int, StateRef] = {}
    for ref in sorted(states, key=lambda one: (one.good, *_by_age(one))):
        if oldest <= ref.step < before_step:
            usable[ref.step] = ref
    if not usable:
        return ()
    chosen = {max(usable)}
    for depth in depths:
        older = [step for step in usable if step <= before_step - depth]
        at = max(older, default=min(usable))
        good = [s for s in older if usable[s].good and before_step - s <= 2 * (before_step - at)]
        chosen.add(max(good) if good and depth else at)
    return tuple(usable[step] for step in sorted(chosen, reverse=True))
