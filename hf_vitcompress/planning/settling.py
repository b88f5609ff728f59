"""From choices that nearly meet several bounds to some that meet them all, one group at a time."""

from collections.abc import Sequence

import numpy as np

Costs = Sequence[Sequence[Sequence[int]]]
"""By bound, by group, of each choice."""


def settled(
    costs: Costs, errors: Sequence[Sequence[float]], rooms: Sequence[int], levels: list[int]
) -> list[int] | None:
    """Choices near `levels` that exceed no room: first what lowers the excess at the least error, then what still fits.

    Args:
        errors: by group, of each choice.
        rooms: what all groups together may cost, by bound.
        levels: which choice of each group to begin with.

    Returns:
        `None` where no change of a single group leads any nearer to the bounds.
    """
    tables = [np.array(own, dtype=np.int64) for own in zip(*costs, strict=True)]
    losses = [np.array(own, dtype=np.float64) for own in errors]
    limits = np.array(rooms, dtype=np.int64)[:, None]
    scale = np.maximum(limits, 1)
    levels = list(levels)
    used = np.sum([table[:, [level]] for table, level in zip(tables, levels, strict=True)], axis=0)

    def excess(total: np.ndarray) -> np.ndarray:
        return (np.maximum(total - limits, 0) / scale).sum(0)

    while True:
        now = excess(used)[0]
        best: tuple[float, int, int] | None = None
        for i, (table, loss) in enumerate(zip(tables, losses, strict=True)):
            change = table - table[:, [levels[i]]]
            then, gained = excess(used + change), loss[levels[i]] - loss
            if now > 0:
                useful, worth = then < now - 1e-12, -np.maximum(-gained, 0) / np.maximum(now - then, 1e-12)
            else:
                price = (np.maximum(change, 0) / scale).sum(0)
                useful, worth = (then == 0) & (gained > 0), gained / np.maximum(price, 1e-12)
            if useful.any():
                j = int(np.where(useful, worth, -np.inf).argmax())
                if best is None or worth[j] > best[0]:
                    best = float(worth[j]), i, j
        if best is None:
            return levels if now == 0 else None
        _, i, j = best
        used = used + tables[i][:, [j]] - tables[i][:, [levels[i]]]
        levels[i] = j
