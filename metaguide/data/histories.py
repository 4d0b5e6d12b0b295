"""Users' histories: the products they took, in chronological order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metaguide.data.catalogue import Interaction


@dataclass(frozen=True)
class History:
    """What a user took so far.

    Attributes:
        user: id of the user.
        products: ids of the products, in chronological order.
    """

    user: str
    products: tuple[str, ...]


def histories(interactions: Sequence[Interaction]) -> list[History]:
    """Return every user's products by time, without repeats; users are sorted by name."""
    taken: dict[str, list[str]] = {}
    for event in sorted(interactions, key=lambda event: event.time):
        taken.setdefault(event.user, []).append(event.product)
    return [History(user, each_once(taken[user])) for user in sorted(taken)]


def each_once(products: Iterable[str]) -> tuple[str, ...]:
    """Return products in chronological order, keeping the first of repeated ones.

    This defines a history everywhere: in training, in serving and in the baselines.
    """
    return tuple(dict.fromkeys(products))
