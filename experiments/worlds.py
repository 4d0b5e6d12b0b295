"""What a config's `data`, `text`, `model` and `episodes` stand for: domains, tokenizer, guide."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from experiments.settings import ConfigError, identity
from metaguide.data.bazaar import BazaarSettings, generate
from metaguide.data.catalogue import Domain, Product, Review, read_catalogue, write_domain
from metaguide.data.encoding import Lengths
from metaguide.data.online_shopping import read_online_shopping
from metaguide.data.repeats import without_repeats
from metaguide.data.texts import product_text
from metaguide.data.tokenizer import Tokenizer
from metaguide.files import atomic_write
from metaguide.guide import model_of
from metaguide.models.guide import GuideModel
from metaguide.problems.guide import Shape, families
from metaguide.types import Family

TOKENIZER = "tokenizer.json"
BAZAAR = "bazaar"
MADE_FROM = "made_from.txt"
"""In the folder of the two above: the identity of the fields that they were made from."""


class World(NamedTuple):
    """The domains of a run, by the part they play, and what reads them.

    Attributes:
        sources: what every stage trains on.
        validation: what rates and penalties are chosen on.
        held_out: what no stage sees before the last table.
        always: by domain, categories that each of its classification episodes contains.
        tokenizer: trained on the sources.
        model: the guide.
        lengths: tokens kept.
        shape: sizes of the episodes.
    """

    sources: tuple[Domain, ...]
    validation: tuple[Domain, ...]
    held_out: tuple[Domain, ...]
    always: Mapping[str, tuple[str, ...]]
    tokenizer: Tokenizer
    model: GuideModel
    lengths: Lengths
    shape: Shape

    @property
    def unseen(self) -> tuple[Domain, ...]:
        """Validation and held-out domains, in one table so that one program evaluates both."""
        return self.validation + self.held_out

    def families(self, part: str, shots: int | None = None, ranked: int | None = None):
        """Return the families of one part of the domains, by kind of task.

        Args:
            part: "sources", "validation", "held_out" or "unseen": whose domains.
            shots: the largest support; the config's by default.
            ranked: products that an episode of recommendation ranks; the whole catalogue by
                default.
        """
        shape = self.shape._replace(candidates=ranked)
        if shots is not None:
            shape = shape._replace(shots=shots)
        made: dict[str, Family] = families(
            self.model,
            getattr(self, part),
            self.tokenizer,
            self.lengths,
            shape,
            always=self.always,
            judged=part != "sources",
        )
        return made


def prepare(config: FrozenConfigDict, folder: Path, tokenizer: Tokenizer | None = None) -> World:
    """Read or generate the domains of a config, and train the tokenizer on its sources.

    Args:
        config: resolved.
        folder: where a generated catalogue and the tokenizer are kept between stages; what another
            config left there is made anew.
        tokenizer: of a guide that was trained before, instead of one of these sources.

    Returns:
        The world.

    Raises:
        ConfigError: a domain is unknown, or plays two parts, or `near` is no share.
        CatalogueError: the data are not as they should be.
    """
    _forget_others(config, folder)
    if config.data.world == "online_shopping":
        sources, validation, held_out, always = _online_shopping(config)
    else:
        domains = _domains(config, folder)
        validation, held_out = _parts(config, domains)
        named = config.data.sources or tuple(
            name for name in domains if name not in config.data.held_out + config.data.validation
        )
        sources = tuple(domains[name] for name in named)
        always = {}
    if not 0 < config.episodes.near <= 1:
        raise ConfigError(
            f"--config.episodes.near={config.episodes.near}: give the share of what texts have in "
            "common from which they count as one, above 0; 1 for the same texts alone"
        )
    sources, validation, held_out = (
        tuple(without_repeats(one, config.episodes.near, config.model.image) for one in part)
        for part in (sources, validation, held_out)
    )
    if tokenizer is None:
        tokenizer = _tokenizer(folder / TOKENIZER, sources, config.text.vocabulary)
    return World(
        sources,
        validation,
        held_out,
        always,
        tokenizer,
        model_of(config.to_dict(), tokenizer),
        Lengths(config.text.text, config.text.pair, config.text.name),
        Shape(
            config.episodes.way,
            config.episodes.shots,
            config.episodes.queries,
            config.episodes.candidates,
            config.episodes.longest,
        ),
    )


def _forget_others(config: FrozenConfigDict, folder: Path) -> None:
    """Delete what `prepare` made in a folder for data that are not those of this config."""
    path = folder / MADE_FROM
    used = {"data": config.data, "text": config.text, "episodes": config.episodes}
    of = identity(FrozenConfigDict({**used, "image": config.model.image}))
    if path.exists() and path.read_text("utf-8", errors="replace") != of:
        (folder / TOKENIZER).unlink(missing_ok=True)
        shutil.rmtree(folder / BAZAAR, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(of.encode())


def _tokenizer(path: Path, sources: Sequence[Domain], vocabulary: int) -> Tokenizer:
    """Read the tokenizer that was trained before, or train it and keep it."""
    if path.exists():
        return Tokenizer.load(path)
    tokenizer = Tokenizer.train(_texts(sources), vocabulary)
    tokenizer.save(path)
    return tokenizer


def _domains(config: FrozenConfigDict, folder: Path) -> dict[str, Domain]:
    """Read a user's catalogue, or the bazaar, which is written as one first."""
    if config.data.world == "catalogue":
        return read_catalogue(Path(config.data.folder))
    if config.data.world != "bazaar":
        raise ConfigError(
            f"--config.data.world={config.data.world}: no such world; there are bazaar, catalogue "
            "and online_shopping"
        )
    root = folder / BAZAAR
    if not root.exists():
        data = config.data
        settings = BazaarSettings(
            seed=data.seed,
            categories=data.categories,
            reviews=data.reviews,
            questions=data.questions,
            users=data.users,
            shared=data.shared,
            chinese=data.chinese,
        )
        part = root.with_name(f"bazaar.part{os.getpid()}")
        for domain in generate(settings).values():
            write_domain(domain, part / domain.name)
        part.rename(root)
    return read_catalogue(root)


def _parts(
    config: FrozenConfigDict, domains: Mapping[str, Domain]
) -> tuple[tuple[Domain, ...], tuple[Domain, ...]]:
    """Return the validation and the held-out domains that the config names."""
    parts = {}
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
            for name in names:
                if name in taken:
                    raise ConfigError(
                        f"domain {name!r} is in config.data.{other} and in config.data.{part}; "
                        "take it out of one of them"
                    )
        parts[part] = names
    if len(config.data.held_out) + len(config.data.validation) >= len(domains):
        raise ConfigError("no source domain is left; hold fewer domains out")
    validation, held_out = (
        tuple(domains[name] for name in parts[part]) for part in ("validation", "held_out")
    )
    return validation, held_out


def _online_shopping(config: FrozenConfigDict):
    """Make the world of Chinese shop reviews: sentiment, and the category of a review.

    A category is a domain for sentiment. For classification all categories stand in one domain,
    since a review's class is its category: texts for training, texts that no stage has read for
    validation (with the validation category) and for the test (with the unseen categories).
    """
    data = config.data
    root = os.environ.get("METAGUIDE_DATA_DIR", "")
    if not root:
        raise ConfigError(
            "METAGUIDE_DATA_DIR is not set; set it to the folder with online_shopping_10_cats.zip"
        )
    domains = read_online_shopping(Path(root) / "online_shopping_10_cats.zip")
    validation, held_out = _parts(config, domains)
    kept: dict[str, tuple[Review, ...]] = {}
    aside: dict[str, dict[str, tuple[Review, ...]]] = {"validation": {}, "held_out": {}}
    rng = np.random.default_rng(data.seed)
    apart = {domain.name for domain in validation + held_out}
    for name, domain in domains.items():
        reviews = domain.reviews
        order = rng.permutation(len(reviews))
        if name in apart:
            part = "validation" if name in data.validation else "held_out"
            aside[part][name] = tuple(reviews[i] for i in order[: data.aside])
            continue
        for part in ("validation", "held_out"):
            taken, order = order[: data.aside], order[data.aside :]
            aside[part][name] = tuple(reviews[i] for i in taken)
        kept[name] = tuple(reviews[i] for i in np.sort(order))
    sources = tuple(Domain(name, reviews=reviews) for name, reviews in kept.items())
    return (
        (*sources, _categories("source categories", kept)),
        (*validation, _categories("validation categories", aside["validation"])),
        (*held_out, _categories("unseen categories", aside["held_out"])),
        {
            "validation categories": tuple(data.validation),
            "unseen categories": tuple(data.held_out),
        },
    )


def _categories(name: str, reviews: Mapping[str, tuple[Review, ...]]) -> Domain:
    return Domain(
        name,
        products=tuple(
            Product(review.id, review.text, category=category)
            for category, several in reviews.items()
            for review in several
        ),
    )


def _texts(domains: Iterable[Domain]):
    for domain in domains:
        for product in domain.products:
            yield product_text(product)
            if product.category is not None:
                yield product.category
        for review in domain.reviews:
            yield review.text
        for question in domain.questions:
            yield question.question
            yield question.text
