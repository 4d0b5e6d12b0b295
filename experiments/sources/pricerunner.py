"""Titles of products in ten categories of electronics and home appliances, PriceRunner.

The same product is sold by several shops, each of which gives it a title of its own: a cluster.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments.sources.parts import Parts, imported, named, real_data
from metaguide.data.catalogue import Domain, Product
from metaguide.data.importers import Options
from metaguide.data.texts import normalised

FILE = "pricerunner_aggregate.zip"
"""The zip as it is published."""

ELECTRONICS = ("CPUs", "Digital Cameras", "Mobile Phones", "TVs")
APPLIANCES = (
    "Dishwashers",
    "Freezers",
    "Fridge Freezers",
    "Fridges",
    "Microwaves",
    "Washing Machines",
)

_COLUMNS = {"id": "id", "title": "title", "attributes.kind": "category"}


def read_domains(called: str = "cluster") -> dict[str, Domain]:
    """Read the titles of each category; the category of a product is its cluster.

    Args:
        called: the column that names a cluster: "cluster", its number, or "label", the name of the
            product, which some clusters share.

    Returns:
        One domain per category, keyed and sorted by name.

    Raises:
        ConfigError: METAGUIDE_DATA_DIR is not set.
        CatalogueError: the file is missing or damaged.
    """
    products: dict[str, list[Product]] = {}
    for product in _products({"category": called}):
        products.setdefault(product.attributes["kind"], []).append(product)
    return {name: Domain(name, products=tuple(products[name])) for name in sorted(products)}


def read_shops() -> dict[str, list[Product]]:
    """Read the titles of each shop, of those with the same title the first alone.

    The category of a product is its cluster, and the attribute "kind" the category of the site.

    Returns:
        The products of each shop, keyed and sorted by the shop's number.

    Raises:
        ConfigError, CatalogueError: as of `read_domains`.
    """
    shops: dict[str, dict[str, Product]] = {}
    for product in _products({"category": "cluster", "attributes.shop": "vendor"}):
        of_shop = shops.setdefault(product.attributes["shop"], {})
        of_shop.setdefault(normalised(product.title), product)
    return {name: [*shops[name].values()] for name in sorted(shops)}


def _products(columns: Mapping[str, str]) -> Sequence[Product]:
    options = Options({**_COLUMNS, **columns})
    return imported("pricerunner", "pricerunner", [real_data(FILE)], options).products


def distinct_titles(domain: Domain) -> list[Product]:
    """Return the products of a category, of those with the same title the first alone."""
    first = {normalised(one.title): one for one in reversed(domain.products)}
    return [*first.values()][::-1]


def read(config: FrozenConfigDict, folder: Path) -> Parts:
    """Read the categories for a run; the errors are those of `named` and `read_domains`.

    Args:
        config: its `data` is read.
        folder: unused, since nothing is generated.
    """
    return named(config, read_domains())
