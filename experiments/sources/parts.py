"""The domains of a run by their role, as a config names them."""

import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from metaguide.data.catalogue import CatalogueError, Domain, Product, read_domain
from metaguide.data.importers import FORMATS, Options, import_domain
from metaguide.training.progress import say


class Parts(NamedTuple):
    """The domains of a run by their role.

    Attributes:
        sources: domains that every stage trains on.
        validation: domains that rates and penalties are chosen on.
        held_out: domains that no stage sees before the final table.
        always: for each domain, categories that all of its classification episodes contain.
    """

    sources: tuple[Domain, ...]
    validation: tuple[Domain, ...]
    held_out: tuple[Domain, ...]
    always: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def named(config: FrozenConfigDict, domains: Mapping[str, Domain]) -> Parts:
    """Return the domains that a config names for each role.

    Args:
        config: its `data.sources`, `data.validation` and `data.held_out` are read. If it names no
            sources, all domains not named elsewhere are sources.
        domains: all available domains, keyed by name.

    Raises:
        ConfigError: a domain is unknown or has two roles, or a role has no domain.
    """
    parts: dict[str, tuple[str, ...]] = {}
    for part in ("sources", "validation", "held_out"):
        names = config.data[part]
        if not names and part != "sources":
            raise ConfigError(f"config.data.{part} is empty; name at least one domain")
        for name in names:
            if name not in domains:
                raise ConfigError(
                    f"config.data.{part} names {name!r}, which the catalogue does not have; it has "
                    f"{', '.join(domains)}"
                )
            for other, taken in parts.items():
                if name in taken:
                    raise ConfigError(
                        f"domain {name!r} is in config.data.{other} and in config.data.{part}; "
                        "take it out of one of them"
                    )
        parts[part] = names
    apart = {*parts["validation"], *parts["held_out"]}
    parts["sources"] = parts["sources"] or tuple(name for name in domains if name not in apart)
    if not parts["sources"]:
        raise ConfigError("no source domain is left; hold fewer domains out")
    sources, validation, held_out = (tuple(map(domains.__getitem__, parts[p])) for p in parts)
    return Parts(sources, validation, held_out)


def at_most(shop: Domain, most: int, seed: int) -> Domain:
    """Return a shop with at most so many reviews, questions, users, and titles with a category.

    Users come with all that they took, and titles with all others of their product, unless these
    are too many. Products without a category are in the shop if a user took them.

    Args:
        shop: any shop.
        most: the maximum; 0 for all.
        seed: of the draw.
    """
    if not most:
        return shop
    rng = np.random.default_rng([seed, most])

    def drawn(count: int) -> list[int]:
        return np.sort(rng.permutation(count)[:most]).tolist()

    reviews = tuple(shop.reviews[row] for row in drawn(len(shop.reviews)))
    questions = tuple(shop.questions[row] for row in drawn(len(shop.questions)))
    everyone = sorted({one.user for one in shop.interactions})
    users = {everyone[row] for row in drawn(len(everyone))}
    interactions = tuple(one for one in shop.interactions if one.user in users)
    wanted = {one.product for one in interactions} | _whole_categories(shop.products, most, rng)
    products = tuple(one for one in shop.products if one.id in wanted)
    return Domain(shop.name, products, reviews, questions, interactions)


def _whole_categories(products: Iterable[Product], most: int, rng: np.random.Generator) -> set[str]:
    """Draw categories as long as they have at most so many products together; return their ids."""
    ids: dict[str, list[str]] = {}
    for product in products:
        if product.category is not None:
            ids.setdefault(product.category, []).append(product.id)
    names, taken = sorted(ids), set()
    for row in rng.permutation(len(names)).tolist():
        if len(taken) + len(ids[names[row]]) <= most:
            taken.update(ids[names[row]])
    return taken


def data_folder() -> Path | None:
    """Return the folder that METAGUIDE_DATA_DIR names; None if it is not set."""
    named = os.environ.get("METAGUIDE_DATA_DIR")
    return Path(named) if named else None


def real_data(file: str) -> Path:
    """Return the path of a file of real data, in the folder that METAGUIDE_DATA_DIR names.

    Raises:
        ConfigError: the variable is not set.
    """
    folder = data_folder()
    if folder is None:
        raise ConfigError(f"METAGUIDE_DATA_DIR is not set; set it to the folder with {file}")
    return folder / file


def members(path: Path, pattern: str) -> list[Path]:
    """Return the paths of the members of a zip whose names fit a pattern, sorted.

    Args:
        path: the zip.
        pattern: as of `Path.match`.

    Raises:
        CatalogueError: it cannot be opened, or none fits.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            names = sorted(packed.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise CatalogueError(f"{path}: cannot be read ({error}); download it again.") from error
    found = [path / name for name in names if Path(name).match(pattern)]
    if not found:
        raise CatalogueError(f"{path}: holds no file such as {pattern}; download it again.")
    return found


def imported(name: str, form: str, files: Sequence[Path], options: Options | None = None) -> Domain:
    """Import files of a published format; says how many of their rows cannot be read, and why.

    Args:
        name: of the domain.
        form: name of the format.
        files: the files; one in a zip goes on from the path of the zip.
        options: which column is which field; by default as the format has it.

    Raises:
        CatalogueError: a file is missing or is not of this format, or nothing in it can be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        summary = import_domain(
            FORMATS[form].importer, files, Path(folder) / name, options or Options()
        )
        for reason, group in summary.rejected.items():
            say(f"{name}: left out {group.count:,}: {reason}, the first at {group.first}")
        return read_domain(Path(folder) / name)
