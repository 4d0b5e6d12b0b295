"""English reviews of 16 domains, FDU-MTL (Liu et al. 2017), about 2,000 of each, half positive."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections.config_dict import FrozenConfigDict

from experiments.sources import Reviews
from experiments.sources.parts import Parts, imported, members, named, real_data
from metaguide.data.catalogue import Domain
from metaguide.data.online_shopping import drop_repeats

FILE = "fdu_mtl.zip"
"""The zip of the folder `mtl-dataset` as it is published."""

NOT_SHOPS = ("MR", "imdb")
"""Domains of films that were not written in a shop."""


def read_reviews() -> tuple[Reviews]:
    """Read the labelled reviews of each shop; the errors are those of `reviews_of`.

    The files for training and for testing become one domain: whole domains are held out.
    """
    files = {name: list(of_parts.values()) for name, of_parts in _files().items()}
    domains = {
        name: imported(name, "fdu-mtl", of_name)
        for name, of_name in files.items()
        if name not in NOT_SHOPS
    }
    return (Reviews(drop_repeats(domains)[0]),)


def read_split() -> dict[str, dict[str, Domain]]:
    """Read the parts "train" and "test" of each of the 16 domains, as they are published.

    The errors are those of `reviews_of`.
    """
    return {
        name: {part: imported(name, "fdu-mtl", [path]) for part, path in of_parts.items()}
        for name, of_parts in _files().items()
    }


def _files() -> dict[str, dict[str, Path]]:
    """Return the files of each domain with labels, keyed by part."""
    files: dict[str, dict[str, Path]] = {}
    for path in members(real_data(FILE), "*.task.*"):
        name, _, part = path.name.partition(".task.")
        if part in ("train", "test"):
            files.setdefault(name, {})[part] = path
    return files


def read_domains() -> Mapping[str, Domain]:
    """Read the labelled reviews of each shop; the errors are those of `reviews_of`."""
    return read_reviews()[0].domains


def read(config: FrozenConfigDict, folder: Path) -> Parts:
    """Read the shops for a run; the errors are those of `named` and `read_reviews`.

    Args:
        config: its `data` is read.
        folder: unused, since nothing is generated.
    """
    return named(config, read_domains())
