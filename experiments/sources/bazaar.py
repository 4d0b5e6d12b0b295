"""The bazaar: generated domains, which are written once in the catalogue format."""

import os
from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments.sources.parts import Parts, named
from metaguide.data.bazaar import BazaarSettings, generate
from metaguide.data.catalogue import read_catalogue, write_domain

FOLDER = "bazaar"
"""Where the domains are kept, in the folder of a run."""


def read(config: FrozenConfigDict, folder: Path) -> Parts:
    """Read the bazaar, which is generated first where it is not there.

    Args:
        config: reads its `data`.
        folder: where the domains are kept.

    Raises:
        ConfigError: as of `named`.
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
