"""A user's own domains, a folder each in the catalogue format."""

from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments.sources.parts import Parts, named
from metaguide.data.catalogue import read_catalogue


def read(config: FrozenConfigDict, folder: Path) -> Parts:
    """Read the domains in the folder that `data.folder` names.

    Args:
        config: reads its `data`.
        folder: not read; nothing is made.

    Raises:
        ConfigError: as of `named`.
        CatalogueError: a domain is not as it should be.
    """
    return named(config, read_catalogue(Path(config.data.folder)))
