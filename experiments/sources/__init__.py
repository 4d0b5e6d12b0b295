"""Where the domains of a run come from: each source is the module of its name in this package."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from experiments.ranges import Range, integer, share, text

if TYPE_CHECKING:  # a config file imports this module, and is read before anything heavy is
    from experiments.sources.parts import Parts

FIELDS: Mapping[str, Mapping[str, Range]] = {
    "bazaar": {
        **{name: integer(0) for name in ("seed", "reviews", "questions", "users")},
        "categories": integer(1, 8),
        **{name: share() for name in ("shared", "chinese")},
    },
    "catalogue": {"folder": text()},
    "online_shopping": {"seed": integer(0), "aside": integer(1)},
}
"""The fields of a config's `data` that each source reads, beside those that name domains."""


def read(config: FrozenConfigDict, folder: Path) -> "Parts":
    """Read the domains of a run from the source that `data.world` names.

    Args:
        config: reads its `data`.
        folder: where a source keeps what it makes.

    Returns:
        The domains, by the part that each plays.

    Raises:
        ConfigError: there is no such source, or no such domain in it.
        CatalogueError: the data are not as they should be.
    """
    name = config.data.world
    if name not in FIELDS:
        *some, last = FIELDS
        raise ConfigError(
            f"--config.data.world={name}: no such world; there are {', '.join(some)} and {last}"
        )
    return import_module(f"{__name__}.{name}").read(config, folder)
