"""The label of an image by the labels of its neighbours."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Vote:
    """What neighbours say. value: None where no neighbour has one.

    votes: for it; counted: neighbours that have a value; margin: (votes - those of the second)
    / counted, 0 where two are equal, 1 where all agree.
    """

    value: Any
    votes: int
    counted: int
    margin: float


def vote(labelled: Iterable[tuple[Any, int]]) -> Vote:
    """Return the most frequent value of (value or None, distance) of the neighbours of an image.

    Of equally frequent values, the one whose neighbours are nearer (sum of distances), then the
    one that is met first.
    """
    votes: dict[Any, int] = defaultdict(int)
    far: dict[Any, int] = defaultdict(int)
    for value, distance in labelled:
        if value is not None:
            votes[value] += 1
            far[value] += distance
    if not votes:
        return Vote(None, 0, 0, 0.0)
    ranked = sorted(votes, key=lambda value: (-votes[value], far[value]))
    counted = sum(votes.values())
    second = votes[ranked[1]] if len(ranked) > 1 else 0
    best = ranked[0]
    return Vote(best, votes[best], counted, (votes[best] - second) / counted)
