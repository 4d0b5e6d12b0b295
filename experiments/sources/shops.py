"""English shops that four data sets tell of together: reviews, titles, questions and purchases.

A shop is made of the domains of FDU-MTL, PriceRunner, SubjQA and the Amazon sequences that are
about the same things, so it may have examples of several tasks. A domain that `SHOPS` does not list
is a shop of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments.sources import amazon_sequences, fdu_mtl, pricerunner, subjqa
from experiments.sources.parts import Parts, at_most, named
from metaguide.data.catalogue import PARTS, CatalogueError, Domain, Product

SHOPS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "beauty": {"reviews": ("health_personal_care",), "purchases": ("Beauty",)},
    "books": {"reviews": ("books",), "questions": ("books",)},
    "cameras": {"reviews": ("camera_photo",), "titles": ("Digital Cameras",)},
    "electronics": {
        "reviews": ("electronics",),
        "questions": ("electronics",),
        "titles": ("CPUs", "TVs"),
    },
    "hotels": {"questions": ("tripadvisor",)},
    "kitchen": {
        "reviews": ("kitchen_housewares",),
        "titles": ("Dishwashers", "Freezers", "Fridge Freezers", "Fridges", "Microwaves"),
    },
    "laundry": {"titles": ("Washing Machines",)},
    "movies": {"reviews": ("dvd",), "questions": ("movies",)},
    "phones": {"titles": ("Mobile Phones",)},
    "sports": {"reviews": ("sports_outdoors",), "purchases": ("Sports",)},
    "toys": {"reviews": ("toys_games",), "purchases": ("Toys",)},
}
"""Shop -> kind of data -> the domains of the data set of that kind."""


def read(config: FrozenConfigDict, folder: Path) -> Parts:
    """Read the shops for a run.

    A user of a held-out shop is no user of the others, and a product is asked for by its titles if
    it has one more than an episode shows.

    Args:
        config: its `data` and `episodes.shots` are read.
        folder: unused, since nothing is generated.

    Raises:
        ConfigError: as for `named`, or METAGUIDE_DATA_DIR is not set.
        CatalogueError: a file is missing or damaged.
    """
    data, shots = config.data, config.episodes.shots
    parts = named(
        config,
        joined(
            {
                "reviews": fdu_mtl.read_reviews()[0].domains,
                "titles": _with_titles(pricerunner.read_domains("label"), shots + 1),
                "questions": _with_texts(subjqa.read_domains(), data.characters),
                "purchases": amazon_sequences.read_domains(),
            }
        ),
    )
    users = {one.user for shop in parts.held_out for one in shop.interactions}

    def taken(shops: Iterable[Domain], without: Iterable[str] = ()) -> tuple[Domain, ...]:
        return tuple(at_most(without_users(shop, without), data.most, data.seed) for shop in shops)

    return Parts(taken(parts.sources, users), taken(parts.validation, users), taken(parts.held_out))


def joined(kinds: Mapping[str, Mapping[str, Domain]]) -> dict[str, Domain]:
    """Return the shops, sorted by name.

    Args:
        kinds: kind of data -> domain -> what the data set of this kind has of it.

    Raises:
        CatalogueError: a data set lacks a domain that `SHOPS` names.
    """
    shop_of = {
        (kind, domain): shop
        for shop, of_kinds in SHOPS.items()
        for kind, domains in of_kinds.items()
        for domain in domains
    }
    for (kind, domain), shop in shop_of.items():
        if domain not in kinds[kind]:
            raise CatalogueError(
                f"the shop {shop!r} has {kind} of {domain!r}, which is not among "
                f"{', '.join(kinds[kind])}; download the data set again"
            )
    found: dict[str, list[Domain]] = {}
    for kind, domains in kinds.items():
        for name, domain in domains.items():
            found.setdefault(shop_of.get((kind, name), name), []).append(domain)
    return {
        shop: Domain(
            shop,
            **{
                part: tuple(chain.from_iterable(getattr(one, part) for one in found[shop]))
                for part in PARTS
            },
        )
        for shop in sorted(found)
    }


def without_users(shop: Domain, users: Iterable[str]) -> Domain:
    """Return a shop without what some users took."""
    users = frozenset(users)
    kept = tuple(one for one in shop.interactions if one.user not in users)
    return replace(shop, interactions=kept)


def _with_titles(clusters: Mapping[str, Domain], least: int) -> dict[str, Domain]:
    """Return the titles of products that have at least so many different ones."""
    found = {}
    for name, domain in clusters.items():
        of_product: dict[str | None, list[Product]] = {}
        for one in pricerunner.distinct_titles(domain):
            of_product.setdefault(one.category, []).append(replace(one, attributes={}))
        enough = [some for some in of_product.values() if len(some) >= least]
        found[name] = Domain(name, products=tuple(chain.from_iterable(enough)))
    return found


def _with_texts(domains: Mapping[str, Domain], most: int) -> dict[str, Domain]:
    """Return the questions about texts of at most so many characters."""
    return {
        name: Domain(name, questions=tuple(q for q in one.questions if len(q.text) <= most))
        for name, one in domains.items()
    }
