"""The bazaar: generated domains, written once in the catalogue format."""

import os
from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments.sources.parts import Parts, named
from metaguide.data.bazaar import BazaarSettings, generate
from metaguide.data.catalogue import read_catalogue, write_domain

FOLDER = "bazaar"
"""Subfolder of a run that holds the domains."""


def read(config: FrozenConfigDict, folder: Path) -> Parts:
    """Read the bazaar, generating it first if it does not exist.

    Args:
        config: its `data` is read.
        folder: folder in which the domains are kept.

    Raises:
        ConfigError: as for `named`.
    """
    root, data = folder / FOLDER, config.data
    if not root.exists():
        settings = BazaarSettings(
            seed=data.seed,
            categories=data.categories,
            reviews=data.reviews,
            questions=data.questions,
            users=data.users,
            shared=data.shared,
            chinese=data.chinese,
        )
        part = root.with_name(f"{FOLDER}.part{os.getpid()}")
        for domain in generate(settings).values():
            write_domain(domain, part / domain.name)
        part.rename(root)
    return named(config, read_catalogue(root))
