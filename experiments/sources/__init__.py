"""Sources of the domains of a run; each source is the module of that name in this package."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from experiments.ranges import Range, integer, share, text

if TYPE_CHECKING:  # config files import this module before any heavy import
    from experiments.sources.parts import Parts
    from metaguide.data.catalogue import Domain

FIELDS: Mapping[str, Mapping[str, Range]] = {
    "bazaar": {
        **{name: integer(0) for name in ("seed", "reviews", "questions", "users")},
        "categories": integer(1, 8),
        **{name: share() for name in ("shared", "chinese")},
    },
    "catalogue": {"folder": text()},
    "online_shopping": {"seed": integer(0), "most": integer(0), "aside": integer(1)},
    "shops": {"seed": integer(0), "most": integer(0), "characters": integer(1)},
    **{name: {} for name in ("fdu_mtl", "arsc", "subjqa", "pricerunner", "amazon_sequences")},
}
"""Fields of a config's `data` that each source reads, in addition to those that name domains."""


def read(config: FrozenConfigDict, folder: Path) -> "Parts":
    """Read the domains of a run from the source that `data.world` names.

    Args:
        config: its `data` is read.
        folder: folder in which a source keeps what it generates.

    Returns:
        The domains by their role.

    Raises:
        ConfigError: there is no such source, or no such domain in it.
        CatalogueError: the data are invalid.
    """
    name = config.data.world
    if name not in FIELDS:
        *some, last = FIELDS
        raise ConfigError(
            f"--config.data.world={name}: no such world; there are {', '.join(some)} and {last}"
        )
    return import_module(f"{__name__}.{name}").read(config, folder)


REAL = ("online_shopping", "fdu_mtl", "arsc", "subjqa", "pricerunner", "amazon_sequences")
"""Sources that are real data sets, whose files are in METAGUIDE_DATA_DIR."""


def tfds_builder(name: str, part: str, data_dir: Path | None = None) -> Any:
    """Return a TensorFlow Datasets builder of a real data set; a split is one of its domains.

    Args:
        name: one of `REAL`. Its file in METAGUIDE_DATA_DIR is read when the data set is prepared.
        part: "products", "reviews", "questions" or "interactions".
        data_dir: as in `metaguide.data.tfds_catalogue.builder`.

    Raises:
        ValueError: there is no such part.
        ConfigError: there is no such data set, or, when it is prepared, METAGUIDE_DATA_DIR is not
            set.
        CatalogueError: when it is prepared: the file is missing or damaged.
    """
    from metaguide.data import tfds_catalogue

    if name not in REAL:
        raise ConfigError(f"no data set {name!r}; there are {', '.join(REAL)}")
    read = import_module(f"{__name__}.{name}").read_domains
    return tfds_catalogue.builder(f"{name}_{part}", part, read, data_dir)


REVIEWS = ("online_shopping", "fdu_mtl", "arsc")
"""Sources that hold reviews of several categories, each labelled with a sentiment."""


class Reviews(NamedTuple):
    """Reviews of several categories, each labelled with a sentiment.

    Attributes:
        domains: one per category, keyed by name; each text occurs once.
        support: ids of the reviews to adapt to, keyed by category, where the data set fixes them.
    """

    domains: "Mapping[str, Domain]"
    support: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def reviews_of(name: str) -> tuple[Reviews, ...]:
    """Read the labelled reviews of a source.

    Args:
        name: one of `REVIEWS`.

    Returns:
        The reviews, in parts that teach each other nothing.

    Raises:
        ConfigError: METAGUIDE_DATA_DIR is not set.
        CatalogueError: the reviews are missing or invalid.
    """
    return import_module(f"{__name__}.{name}").read_reviews()
