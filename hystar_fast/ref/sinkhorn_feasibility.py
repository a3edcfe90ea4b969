"""An exact test that a mask permits a transport plan: a maximum flow in integers, for the few problems that need it."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor


def has_plan(allowed: Tensor) -> bool:
    """Return whether entries >= 0 on `allowed` [N, M] can have rows of sum 1 and columns of sum N/M."""
    n, m = allowed.shape
    unit = math.gcd(n, m)
    neighbours = [sum(1 << j for j in row.nonzero().flatten().tolist()) for row in allowed]
    demand, holders = [n // unit] * m, [dict[int, int]() for _ in range(m)]
    unmet = (1 << m) - 1
    for start in range(n):
        supply = m // unit
        while supply:
            path = _augmenting_path(start, neighbours, holders, unmet)
            if not path:
                return False
            given_up = [(column, holder) for (_, column), (holder, _) in pairwise(path)]
            end = path[-1][1]
            amount = min([supply, demand[end], *(holders[column][holder] for column, holder in given_up)])
            for row, column in path:
                holders[column][row] = holders[column].get(row, 0) + amount
            for column, holder in given_up:
                holders[column][holder] -= amount
                if not holders[column][holder]:
                    del holders[column][holder]
            demand[end] -= amount
            supply -= amount
            if not demand[end]:
                unmet &= ~(1 << end)
    return True


def _augmenting_path(
    start: int, neighbours: list[int], holders: list[dict[int, int]], unmet: int
) -> list[tuple[int, int]]:
    """Return the shortest path of (row, column) steps from `start` to an unmet column, or an empty list.

    A path takes a column from a row that holds it, which must then reach another column.
    """
    reached_from: dict[int, tuple[int, int] | None] = {start: None}
    queue, seen = [start], 0
    for row in queue:
        fresh = neighbours[row] & ~seen
        seen |= fresh
        if fresh & unmet:
            column = (fresh & unmet).bit_length() - 1
            path = [(row, column)]
            step = reached_from[row]
            while step is not None:
                path.append(step)
                step = reached_from[step[0]]
            return path[::-1]
        while fresh:
            column = fresh.bit_length() - 1
            fresh ^= 1 << column
            for holder in holders[column]:
                if holder not in reached_from:
                    reached_from[holder] = (row, column)
                    queue.append(holder)
    return []
