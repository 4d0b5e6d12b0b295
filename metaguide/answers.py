"""What the guide is asked of a user, and what it answers."""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from metaguide.data.catalogue import Product, Question, Review, checked_example
from metaguide.data.histories import History


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


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """The domain's products for one user, best first, without those the user has.

    Attributes:
        user: whose it is.
        scores: float32, of each of `products`, falling; higher is better, and only the order of
            one user's scores means something.
        by: "history" where it follows from what the user took, "no history" where the user took
            nothing: then it is what the guide learned of users in general on the domains it was
            trained on, the same for all such users. It is not the popularity in this domain.
        catalogue: ids of all products of the domain.
        rows: of `products` in the catalogue.
    """

    user: str
    scores: np.ndarray
    by: str
    catalogue: tuple[str, ...]
    rows: np.ndarray

    @property
    def products(self) -> tuple[str, ...]:
        """Ids, best first; made when asked, since 10,000 rankings of 10,000 fill the memory."""
        return tuple(self.catalogue[row] for row in self.rows)

    def __eq__(self, other: object) -> bool:
        """Equal in user, products, scores and what it follows from."""
        if not isinstance(other, Ranking):
            return NotImplemented
        return (self.user, self.by, self.products) == (other.user, other.by, other.products) and (
            np.array_equal(self.scores, other.scores)
        )

    def __repr__(self) -> str:
        """The first three products."""
        first = ", ".join(self.catalogue[row] for row in self.rows[:3])
        more = ", …" if len(self.rows) > 3 else ""
        return f"<Ranking of {len(self.rows)} for {self.user!r} by {self.by}: {first}{more}>"


KIND_ASKED: Mapping[type, str] = {
    Product: "classification",
    Review: "sentiment",
    Question: "questions",
    History: "recommendation",
}
"""Which kind of task an example asks for, by its type."""


def whole_number(name: str, value: Any, least: int) -> int:
    """Return an argument that has to be a whole number.

    Raises:
        ValueError: it is of another type, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} is {reprlib.repr(value)}; give a whole number, {least} or more")
    if value < least:
        raise ValueError(f"{name} is {value}; it has to be {least} or more")
    return int(value)


def asked(batch: Any) -> list[Any]:
    """Return what a batch asks about, checked, with pictures as the reader makes them.

    Args:
        batch: any iterable of products, reviews, questions or histories of one type.

    Returns:
        The examples without their labels.

    Raises:
        ValueError: it is no such iterable, or a field of an example cannot be read.
    """
    if isinstance(batch, (*KIND_ASKED, str, bytes, Mapping)) or not isinstance(batch, Iterable):
        raise ValueError(
            f"a batch is a list, such as predict([product]); got one {type(batch).__name__}"
        )
    examples = list(batch)
    types = {type(one) for one in examples}
    if len(types) > 1 or not types <= set(KIND_ASKED):
        names = ", ".join(sorted(one.__name__ for one in types))
        raise ValueError(
            f"a batch holds Products, Reviews, Questions or Histories of one type; got {names}"
        )
    return [
        _checked_history(f"batch[{row}]", one)
        if isinstance(one, History)
        else checked_example(f"batch[{row}]", one)
        for row, one in enumerate(examples)
    ]


def _checked_history(where: str, history: History) -> History:
    products = history.products
    if isinstance(products, str | bytes | Mapping) or not isinstance(products, Iterable):
        raise ValueError(f"{where}: products is {reprlib.repr(products)}; give a tuple of ids")
    products = tuple(products)
    for one in (history.user, *products):
        if not isinstance(one, str):
            raise ValueError(f"{where}: {reprlib.repr(one)} is no id; users and products are texts")
    return History(history.user, products)
