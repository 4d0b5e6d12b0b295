"""The domains of a run by their role, with the tokenizer and the guide that read them."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections.config_dict import FrozenConfigDict

from experiments import sources
from experiments.config_files import ConfigError
from experiments.encoders import load_of, read_encoder
from experiments.run_folder import identity
from experiments.sources import bazaar
from metaguide.data.catalogue import Domain
from metaguide.data.episodes import EpisodeError
from metaguide.data.repeats import without_repeats
from metaguide.data.texts import product_text
from metaguide.data.tokenizer import TextTokenizer, Tokenizer, TokenizerError
from metaguide.files import atomic_write
from metaguide.guide import description_of, model_of, reading_of, tuning_of
from metaguide.models.encoder import FROZEN
from metaguide.models.guide import GuideModel
from metaguide.parallel import first_process_first, replicate, tasks_mesh
from metaguide.pretrained import PretrainedEncoder, tuned_params
from metaguide.run_config import TOKENIZER, FieldError, RunConfig
from metaguide.tasks import Reading, Shape, task_distributions
from metaguide.tasks.classification import categories_of
from metaguide.types import Params, TaskDistribution

MADE_FROM = "made_from.txt"
"""File next to the tokenizer and the bazaar: identity of the fields they were made from."""


class DomainSplit(NamedTuple):
    """The domains of a run by their role, and what reads them.

    Attributes:
        sources: domains that every stage trains on.
        validation: domains that rates and penalties are chosen on.
        held_out: domains that no stage sees before the final table.
        always: for each domain, categories that all of its classification episodes contain.
        model: the guide.
        reading: how the guide reads, with a tokenizer trained on the sources.
        shape: sizes of the episodes.
        guide: description of the guide as stored in a run folder, before any training.
        weights: parameter groups that start as those of a pretrained encoder, keyed by name.
    """

    sources: tuple[Domain, ...]
    validation: tuple[Domain, ...]
    held_out: tuple[Domain, ...]
    always: Mapping[str, tuple[str, ...]]
    model: GuideModel
    reading: Reading
    shape: Shape
    guide: RunConfig
    weights: Mapping[str, Params] = MappingProxyType({})

    @property
    def frozen(self) -> Params | None:
        """Return the parameters that nothing trains; None if there are none."""
        return self.weights.get(FROZEN)

    @property
    def unseen(self) -> tuple[Domain, ...]:
        """Validation and held-out domains, in one table so that one program evaluates both."""
        return self.validation + self.held_out

    def run_config(self, **fields: Any) -> RunConfig:
        """Return the description of the guide trained in a folder.

        Args:
            fields: stage, learner, seed and serving, as in `RunConfig`.

        Raises:
            ConfigError: a field has a value that could not be read back.
        """
        try:
            return replace(self.guide, **fields)
        except FieldError as error:
            raise ConfigError(f"the guide could not be loaded from its folder: {error}") from error

    def task_distributions(self, part: str, ranked: int | None = None, **sizes: int):
        """Return the task distributions of one part of the domains, keyed by task.

        Args:
            part: which domains: "sources", "validation", "held_out" or "unseen".
            ranked: number of products that an episode of recommendation ranks; by default the
                complete catalogue.
            sizes: other fields of `Shape`; the config's by default.

        Raises:
            ConfigError: a domain cannot provide such episodes.
        """
        shape = self.shape._replace(candidates=ranked, **sizes)
        try:
            made: dict[str, TaskDistribution] = task_distributions(
                self.model,
                getattr(self, part),
                self.reading,
                shape,
                always=self.always,
                scored=part != "sources",
            )
        except EpisodeError as error:
            raise ConfigError(f"config.episodes: {error}") from error
        return made


def prepare(
    config: FrozenConfigDict, folder: Path, tokenizer: TextTokenizer | None = None
) -> DomainSplit:
    """Read or generate the domains of a config, and train the tokenizer on its sources.

    If there are several processes, all have to call it; the first one makes what the others read.

    Args:
        config: a resolved config.
        folder: folder in which a generated catalogue and the tokenizer are kept between stages;
            what another config left there is replaced.
        tokenizer: tokenizer of a guide that was trained before, to use instead of training one.

    Returns:
        The domains, and what reads them.

    Raises:
        ConfigError: a domain is unknown or has two roles, or `near` is not a share.
        CatalogueError: the data are invalid.
    """
    return first_process_first(partial(_prepared, config, folder, tokenizer))


def _prepared(
    config: FrozenConfigDict, folder: Path, tokenizer: TextTokenizer | None
) -> DomainSplit:
    """Do the work of `prepare` in one process."""
    _forget_others(config, folder)
    parts = sources.read(config, folder)
    if not 0 < config.episodes.near <= 1:
        raise ConfigError(
            f"--config.episodes.near={config.episodes.near}: give the share of what texts have in "
            "common from which they count as one, above 0; 1 for the same texts alone"
        )
    read, validation, held_out = (
        tuple(without_repeats(one, config.episodes.near, config.model.image) for one in part)
        for part in (parts.sources, parts.validation, parts.held_out)
    )
    if trains_encoder(config):
        encoder, vectors = _encoder_to_train(config), None
        tokenizer = encoder.guide_tokenizer
    else:
        encoder, vectors = read_encoder(config.encoder, folder) or (None, None)
        if tokenizer is None and config.model.layers:
            tokenizer = _tokenizer(folder / TOKENIZER, read, config.text.vocabulary)
    guide = _guide(config, tokenizer, encoder, read)
    weights: Mapping[str, Params] = {}
    try:
        model, tuning = model_of(guide, tokenizer, encoder), tuning_of(guide)
    except ValueError as error:
        raise ConfigError(f"config.encoder, config.text: {error}") from error
    if encoder is not None and tuning is not None:
        weights = replicate(tuned_params(encoder, tuning), tasks_mesh())
    return DomainSplit(
        read,
        validation,
        held_out,
        parts.always,
        model,
        reading_of(guide, tokenizer, vectors),
        Shape(
            config.episodes.way,
            config.episodes.shots,
            config.episodes.queries,
            config.episodes.candidates,
        ),
        guide,
        weights,
    )


def trains_encoder(config: FrozenConfigDict) -> bool:
    """Return whether a config's pretrained encoder is the guide's encoder of texts.

    Then our own Transformer is left out, whatever its layers.
    """
    return config.encoder.train != "frozen"


def _encoder_to_train(config: FrozenConfigDict) -> PretrainedEncoder:
    """Read the pretrained encoder that a config trains.

    Raises:
        ConfigError: the config names none, or its folder holds none that can be trained.
    """
    encoder = load_of(config.encoder)
    if encoder is None:
        raise ConfigError(
            f"--config.encoder.train={config.encoder.train}: there is no encoder to train; give "
            "its folder, --config.encoder.weights=FOLDER"
        )
    try:
        encoder.guide_tokenizer  # noqa: B018  # it is built once, here
    except TokenizerError as error:
        raise ConfigError(f"--config.encoder.weights={config.encoder.weights}: {error}") from error
    return encoder


def _guide(
    config: FrozenConfigDict,
    tokenizer: TextTokenizer | None,
    encoder: PretrainedEncoder | None,
    read: Sequence[Domain],
) -> RunConfig:
    """Return the run folder's description of the guide that a config specifies.

    Raises:
        ConfigError: a field has a value that no guide can have.
    """
    model, text, section = config.model, config.text, config.encoder
    shape = {"width": model.width, "layers": model.layers, "heads": model.heads}
    if encoder is not None and trains_encoder(config):
        shape = {"width": encoder.config.width, "layers": 0, "heads": encoder.config.heads}
        shape["encoder_rank"] = section.rank if section.train == "lora" else 0
        shape["encoder_layers"] = section.layers if section.train == "last" else 0
    try:
        return RunConfig(
            **shape,
            encoder_train=section.train,
            dropout=model.dropout,
            channels=tuple(model.channels),
            image=model.image,
            way=model.way,
            text_tokens=text.text,
            pair_tokens=text.pair,
            name_tokens=text.name,
            max_answer_tokens=config.episodes.max_answer_tokens,
            buckets=text.buckets,
            vocabulary=None if tokenizer is None else tokenizer.size,
            known_classes=_known_classes(config, read),
            **({} if encoder is None else description_of(encoder, config.encoder.weights)),
        )
    except FieldError as error:
        raise ConfigError(f"config.model, config.text or config.episodes: {error}") from error


def _known_classes(config: FrozenConfigDict, read: Sequence[Domain]) -> tuple[str, ...]:
    """Return the product categories that training sees, if it trains classification."""
    products = (one for domain in read for one in domain.products)
    return categories_of(products) if config.multitask.weights.classification else ()


def _forget_others(config: FrozenConfigDict, folder: Path) -> None:
    """Delete what `prepare` made in a folder for data other than this config's."""
    path = folder / MADE_FROM
    used = {"data": config.data, "text": config.text, "episodes": config.episodes}
    of = identity(FrozenConfigDict({**used, "image": config.model.image}))
    if path.exists() and path.read_text("utf-8", errors="replace") != of:
        (folder / TOKENIZER).unlink(missing_ok=True)
        shutil.rmtree(folder / bazaar.FOLDER, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(of.encode())


def _tokenizer(path: Path, sources: Sequence[Domain], vocabulary: int) -> Tokenizer:
    """Read the tokenizer if it was trained before; otherwise train and save it."""
    if path.exists():
        return Tokenizer.load(path)
    tokenizer = Tokenizer.train(_texts(sources), vocabulary)
    tokenizer.save(path)
    return tokenizer


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
