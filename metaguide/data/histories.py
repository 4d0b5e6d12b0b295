"""What users took, in the order of time: what a history means wherever one is read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metaguide.data.catalogue import Interaction


@dataclass(frozen=True)
class History:
    """A user and the products taken so far, in the order of time."""

    user: str
    products: tuple[str, ...]


def histories(interactions: Sequence[Interaction]) -> list[History]:
    """Return every user's products in the order of time, as `each_once`, users sorted by name."""
    taken: dict[str, list[str]] = {}
    for event in sorted(interactions, key=lambda event: event.time):
        taken.setdefault(event.user, []).append(event.product)
    return [History(user, each_once(taken[user])) for user in sorted(taken)]


def each_once(products: Iterable[str]) -> tuple[str, ...]:
    """Return products in the order of time, one that comes again at its first time alone.

    This is what a history means wherever one is read: in training, in serving and in the baselines.
    """
    return tuple(dict.fromkeys(products))
