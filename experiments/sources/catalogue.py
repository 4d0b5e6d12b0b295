"""A user's own domains, each in a folder in the catalogue format."""

from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments.sources.parts import Parts, named
from metaguide.data.catalogue import read_catalogue


def read(config: FrozenConfigDict, folder: Path) -> Parts:
    """Read the domains in the folder that `data.folder` names.

    Args:
        config: its `data` is read.
        folder: unused, since nothing is generated.

    Raises:
        ConfigError: as for `named`.
        CatalogueError: a domain is invalid.
    """
    return named(config, read_catalogue(Path(config.data.folder)))
