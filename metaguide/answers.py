"""What the guide is asked of a user, and what it answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from metaguide.data.catalogue import Interaction


class Category(NamedTuple):
    """Which category a product is of.

    Attributes:
        category: the most probable one.
        probabilities: of all categories of the domain, by name.
    """

    category: str
    probabilities: Mapping[str, float]


class Sentiment(NamedTuple):
    """What a review thinks: "positive" or "negative", how probably positive, and how many stars."""

    sentiment: str
    positive: float
    stars: float | None


class Answer(NamedTuple):
    """Where the answer stands in the passage, as characters; both are None where there is none."""

    span: tuple[int, int] | None
    text: str | None


class Ranking(NamedTuple):
    """The domain's products for one user, best first, without those the user has."""

    user: str
    products: tuple[str, ...]


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

    This is what a history means wherever one is read: in training, in serving and in the floors.
    """
    return tuple(dict.fromkeys(products))
