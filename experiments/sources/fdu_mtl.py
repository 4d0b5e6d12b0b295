"""English reviews of 16 domains, FDU-MTL (Liu et al. 2017), about 2,000 of each, half positive."""

import zipfile
from pathlib import Path

from experiments.sources.parts import imported, real_data
from metaguide.data.catalogue import CatalogueError, Domain
from metaguide.data.online_shopping import drop_repeats

FILE = "fdu_mtl.zip"
"""The zip of the folder `mtl-dataset` as it is published."""

NOT_SHOPS = ("MR", "imdb")
"""Domains of films that were not written in a shop."""


def read_reviews() -> dict[str, Domain]:
    """Read the labelled reviews of each shop; the errors are those of `reviews_of`.

    The files for training and for testing become one domain: whole domains are held out.
    """
    path = real_data(FILE)
    try:
        with zipfile.ZipFile(path) as packed:
            members = sorted(packed.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise CatalogueError(f"{path}: cannot be read ({error}); download it again.") from error
    files: dict[str, list[Path]] = {}
    for member in members:
        name, _, part = Path(member).name.partition(".task.")
        if part in ("train", "test") and name not in NOT_SHOPS:
            files.setdefault(name, []).append(path / member)
    if not files:
        raise CatalogueError(f"{path}: holds no reviews such as mtl-dataset/books.task.train.")
    domains = {name: imported(name, "fdu-mtl", of_name) for name, of_name in files.items()}
    return drop_repeats(domains)[0]
