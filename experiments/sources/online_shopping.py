"""Chinese shop reviews, online_shopping_10_cats: sentiment, and the category of a review."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments.sources import Reviews
from experiments.sources.parts import Parts, at_most, named, real_data
from metaguide.data.catalogue import Domain, Product, Review
from metaguide.data.online_shopping import read_online_shopping

FILE = "online_shopping_10_cats.zip"
"""The zip as it is published."""


def read_domains() -> dict[str, Domain]:
    """Read the reviews of each category; the errors are those of `reviews_of`."""
    return read_online_shopping(real_data(FILE))


def read_reviews() -> tuple[Reviews]:
    """Read the reviews of each category; the errors are those of `reviews_of`."""
    return (Reviews(read_domains()),)


def read(config: FrozenConfigDict, folder: Path) -> Parts:
    """Read the reviews, with categories that no stage sees.

    For sentiment, each category is a domain. For classification all categories share one domain,
    since a review's class is its category. It has texts for training, and texts that no stage has
    read for validation (with the validation category) and for the test (with the unseen
    categories).

    Args:
        config: its `data` is read.
        folder: unused, since nothing is generated.

    Raises:
        ConfigError: as for `named`, or METAGUIDE_DATA_DIR is not set.
        CatalogueError: the reviews are missing or invalid.
    """
    data = config.data
    domains = {
        name: at_most(domain, data.most, data.seed) for name, domain in read_domains().items()
    }
    parts = named(config, domains)
    kept: dict[str, tuple[Review, ...]] = {}
    aside: dict[str, dict[str, tuple[Review, ...]]] = {"validation": {}, "held_out": {}}
    rng = np.random.default_rng(data.seed)
    part_of = {one.name: part for part in aside for one in getattr(parts, part)}
    sources = {one.name for one in parts.sources}
    for name, domain in domains.items():
        reviews = domain.reviews
        order = rng.permutation(len(reviews))
        if name in part_of:
            aside[part_of[name]][name] = tuple(reviews[i] for i in order[: data.aside])
        elif name in sources:
            for taken in aside.values():
                chosen, order = order[: data.aside], order[data.aside :]
                taken[name] = tuple(reviews[i] for i in chosen)
            kept[name] = tuple(reviews[i] for i in np.sort(order))
    names = {"validation": "validation categories", "held_out": "unseen categories"}
    return Parts(
        (
            *(Domain(name, reviews=reviews) for name, reviews in kept.items()),
            _categories("source categories", kept),
        ),
        (*parts.validation, _categories(names["validation"], aside["validation"])),
        (*parts.held_out, _categories(names["held_out"], aside["held_out"])),
        {names[part]: tuple(data[part]) for part in names},
    )


def _categories(name: str, reviews: Mapping[str, tuple[Review, ...]]) -> Domain:
    """Return a domain whose products are reviews, each in the category it was written for."""
    return Domain(
        name,
        products=tuple(
            Product(review.id, review.text, category=category)
            for category, several in reviews.items()
            for review in several
        ),
    )
