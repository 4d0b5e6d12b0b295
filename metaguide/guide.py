"""The interface of a trained guide: `metaguide.load(run).adapt(domain, shots=5).predict(batch)`.

An adapted guide is kept by `save`, and read again by `load`.
"""

import os
import reprlib
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from metaguide import run_config, saved
from metaguide.data.catalogue import (
    Domain,
    Product,
    Question,
    Review,
    checked_domain,
    read_domain,
)
from metaguide.data.encoding import Lengths, TextReader
from metaguide.data.histories import History
from metaguide.data.repeats import without_repeats
from metaguide.data.tokenizer import TextTokenizer, Tokenizer
from metaguide.methods import adaptation_of
from metaguide.models.bert import Pooling
from metaguide.models.encoder import FROZEN, transformer
from metaguide.models.guide import GuideModel, init_params
from metaguide.models.tuned import Tuning
from metaguide.pretrained import (
    EncoderError,
    PretrainedEncoder,
    Vectors,
    is_encoder,
    load_encoder,
    remembered,
    tuned_encoder,
    tuned_params,
    vector_reader,
)
from metaguide.run_config import RunConfig
from metaguide.tasks import (
    TASKS,
    Adapted,
    Answer,
    Category,
    Ranking,
    Reading,
    Sentiment,
    Server,
    Serving,
    guide_model,
)
from metaguide.tasks.recommendation import untrained
from metaguide.training.checkpoint import CheckpointError, restore_stage
from metaguide.training.program import SIZES
from metaguide.training.progress import patience

Support = Iterable[Product | Review | Question]


@dataclass(frozen=True, repr=False)
class Guide:
    """A trained guide, before adaptation to a domain.

    Attributes:
        model: its model.
        reading: how it reads texts and pictures.
        serving: the parameters and the method that serve each task, keyed by task.
        config: the description of its model and reading; None in a guide that was put together by
            hand, which cannot be saved.
        source: the folder it was loaded from.
    """

    model: GuideModel
    reading: Reading
    serving: Mapping[str, Serving]
    config: RunConfig | None = None
    source: str = ""
    _programs: dict[Any, Any] = field(default_factory=dict, init=False, compare=False)
    """Compiled programs: another domain of the same sizes does not compile again."""

    def __repr__(self) -> str:
        """Return which method serves which task."""
        methods = ", ".join(f"{task} by {one.method}" for task, one in self.serving.items())
        return f"<Guide: {methods or 'serves nothing'}>"

    @overload
    def adapt(
        self,
        domain: Domain,
        shots: int = 5,
        seed: int = 0,
        support: Support = (),
        unlabelled: int = 0,
    ) -> "AdaptedGuide": ...
    @overload
    def adapt(
        self,
        domain: Path | str,
        shots: int = 5,
        seed: int = 0,
        support: Support = (),
        unlabelled: int = 0,
    ) -> "AdaptedGuide": ...
    def adapt(self, domain, shots=5, seed=0, support=(), unlabelled=0):
        """Adapt to a domain from a few of its examples.

        If a task cannot be adapted to in full, the guide adapts as far as possible, warns, and
        records it in `AdaptedGuide.notes`. A class with fewer examples than `shots` gives all it
        has. If there are no examples to adapt to, the guide answers as it was trained, if it can.

        Args:
            domain: a domain, or the folder of one in the catalogue format. Among repeated examples
                only the first is read, with a warning.
            shots: number of examples to adapt to: per category, per sentiment, of questions, and of
                products per user. 0 uses the guide as it is.
            seed: seed of the draw of the examples.
            support: hand-picked examples to adapt to. For their tasks they replace the draw, and
                `shots` and `seed` are ignored.
            unlabelled: the largest number of other examples of the domain, for each task, that a
                method may learn from as well; their labels, if they have any, are not read. The
                method `soft-k-means` does, which serves sentiment in a guide of `from_encoder`.

        Returns:
            The adapted guide.

        Raises:
            CatalogueError: the folder is not a domain, or a domain made in Python holds values
                that `read_domain` would reject.
            ValueError: another argument is not as above, or an example of the support has no label.
        """
        shots, seed = whole_number("shots", shots, 0), whole_number("seed", seed, 0)
        unlabelled = whole_number("unlabelled", unlabelled, 0)
        methods = [one.method for one in self.serving.values()]
        if unlabelled and not any(adaptation_of(one).reads_unlabelled for one in methods):
            warnings.warn(
                f"unlabelled is {unlabelled}, but none of the methods of this guide learns from "
                "examples without labels",
                stacklevel=2,
            )
        if isinstance(domain, Domain):
            domain = checked_domain(domain)
        elif isinstance(domain, str | os.PathLike):
            domain = read_domain(Path(domain))
        else:
            raise ValueError(
                f"domain is {reprlib.repr(domain)}; give the folder of one, or a Domain, such as "
                "Domain('phones', products=..., reviews=...)"
            )
        picked = _picked(support)
        domain = without_repeats(domain, pictures=self.model.image)
        others = dict.fromkeys(self.serving, unlabelled)
        adapted, notes = self._adapted(domain, shots, seed, picked, others)
        for name in TASKS:
            if name not in self.serving:
                notes[name] = (f"this guide was not trained on {name}",)
        return AdaptedGuide(self, domain, shots, adapted, notes, _waiting(picked, adapted))

    def _adapted(
        self,
        domain: Domain,
        shots: int,
        seed: int,
        picked: Mapping[str, Sequence[Any]],
        unlabelled: Mapping[str, int | Sequence[Any]],
    ) -> tuple[dict[str, Adapted], dict[str, tuple[str, ...]]]:
        """Return the adapted tasks, and notes on what is lacking; warn of what is urgent.

        Args:
            domain, shots, seed: as in `adapt`.
            picked: examples to adapt to, keyed by task; the other tasks draw theirs.
            unlabelled: the tasks to adapt, and what each reads without labels: as many examples,
                or these.
        """
        rng = np.random.default_rng(seed)
        adapted, notes, urgent = {}, {}, []
        for name, others in unlabelled.items():
            adapted[name], notes[name] = TASKS[name].adapt(
                self.server(name), domain, shots, rng, picked.get(name), others
            )
            # Do not warn about a task that the domain does not have at all.
            if notes[name] and (getattr(domain, TASKS[name].part) or name in picked):
                urgent.append(name)
        adapted = {task: one for task, one in adapted.items() if one is not None}
        notes = {task: said for task, said in notes.items() if said}
        for task in urgent if adapted else notes:
            said = "; ".join(notes[task])
            warnings.warn(f"domain {domain.name}, {task}: {said}", stacklevel=3)
        return adapted, notes

    def served_by(self, task: str, serving: Serving) -> "Guide":
        """Return the guide with other parameters or another method for a task."""
        found = replace(self, serving={**self.serving, task: serving})
        object.__setattr__(found, "_programs", self._programs)  # they say what serves
        return found

    def server(self, task: str) -> Server:
        """Return the guide as one of its tasks sees it."""
        serving = self.serving[task]
        reading = self.reading.as_read_by(adaptation_of(serving.method))
        return Server(self.model, reading, serving, self._programs)


def _waiting(
    picked: Mapping[str, Sequence[Any]], adapted: Mapping[str, Adapted]
) -> dict[str, tuple[Any, ...]]:
    """Return the examples of tasks that did not adapt to them."""
    return {
        task: tuple(some)
        for task, some in picked.items()
        if some and not (task in adapted and adapted[task].support)
    }


def _others(of_tasks: Mapping[str, Any], tasks: Collection[str]) -> dict[str, Any]:
    """Return what belongs to other tasks than these."""
    return {task: one for task, one in of_tasks.items() if task not in tasks}


@dataclass(frozen=True, repr=False)
class AdaptedGuide:
    """A guide adapted to a domain; `predict` answers by the type of its input.

    Attributes:
        guide: the guide that adapted.
        domain: the domain it adapted to.
        shots: number of shots per class.
        adapted: the tasks that `predict` answers, keyed by name.
        notes: keyed by task, what could not be adapted to, and why; tasks without notes are absent.
        waiting: keyed by task, examples that were too few to adapt to; tasks without are absent.
    """

    guide: Guide
    domain: Domain
    shots: int
    adapted: Mapping[str, Adapted]
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    waiting: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return the domain, and to how many examples of each task the guide adapted."""
        parts = ", ".join(f"{task} {len(one.chosen)}" for task, one in self.adapted.items())
        return f"<AdaptedGuide to {self.domain.name!r}, {self.shots} shots: {parts or 'nothing'}>"

    @property
    def categories(self) -> tuple[str, ...]:
        """Return the domain's categories."""
        found = self.adapted.get("classification")
        return found.classes if found else ()

    def adapt(self, support: Support) -> "AdaptedGuide":
        """Adapt further, from the examples of before and new ones.

        The tasks of the new examples adapt anew from both; the others stay as they are. Examples
        that are too few, as reviews of one sentiment may be, wait for those of a later call.

        Args:
            support: hand-picked examples, as in `Guide.adapt`. One with the id of an earlier one
                replaces it.

        Returns:
            The adapted guide; this one does not change.

        Raises:
            ValueError: an example has no label, or is of a task that the guide does not serve.
        """
        picked, unlabelled = {}, {}
        for name, new in _picked(support).items():
            if name not in self.guide.serving:
                raise ValueError(
                    f"support holds examples of {name}, which this guide was not trained on; leave "
                    "them out"
                )
            ids, before = {one.id for one in new}, self.adapted.get(name)
            known = () if before is None else before.support
            known = (*known, *self.waiting.get(name, ()))
            picked[name] = [*(one for one in known if one.id not in ids), *new]
            unlabelled[name] = () if before is None else before.unlabelled
        # What the guide adapted to is given; of the rest of the domain only products are read.
        domain = Domain(self.domain.name, self.domain.products)
        adapted, notes = self.guide._adapted(domain, self.shots, 0, picked, unlabelled)
        return replace(
            self,
            adapted={**_others(self.adapted, picked), **adapted},
            notes={**_others(self.notes, picked), **notes},
            waiting={**_others(self.waiting, picked), **_waiting(picked, adapted)},
        )

    def served_by(self, task: str, serving: Serving) -> "AdaptedGuide":
        """Adapt a task anew, to the same examples, by another method or other parameters.

        Args:
            task: a task that is adapted.
            serving: what serves it from now on.

        Returns:
            The adapted guide; this one does not change.
        """
        guide, one = self.guide.served_by(task, serving), self.adapted[task]
        examples, others = {task: one.support}, {task: one.unlabelled}
        adapted, notes = guide._adapted(self.domain, self.shots, 0, examples, others)
        return replace(
            self,
            guide=guide,
            adapted={**_others(self.adapted, [task]), **adapted},
            notes={**_others(self.notes, [task]), **notes},
            waiting={**self.waiting, **_waiting(examples, adapted)},
        )

    def save(self, path: Path | str, with_encoder: bool = False) -> None:
        """Write the guide into a folder that `load` reads, atomically.

        The folder holds the parameters, the examples that were adapted to and the products of the
        domain, but none of its other reviews and questions, and no interactions.

        Args:
            path: the folder. A guide that was saved there is replaced.
            with_encoder: whether to copy the files of the pretrained encoder, if there is one, so
                that the folder needs nothing else; by default it says where the encoder is.

        Raises:
            CheckpointError: there is something else in the folder, or it cannot be written.
            EncoderError: the pretrained encoder is no longer where it was read.
            ValueError: the guide was put together by hand, or has a part that is not the library's
                own.
        """
        guide = self.guide
        if guide.config is None:
            raise ValueError(
                "this guide was put together by hand, and its model is not described; save one of "
                "load or from_encoder"
            )
        tokenizer = guide.reading.reader.tokenizer
        contents = saved.Contents(
            guide.config,
            guide.source,
            tokenizer if isinstance(tokenizer, Tokenizer) else None,
            guide.serving,
            self.domain,
            self.shots,
            self.adapted,
            self.notes,
            self.waiting,
        )
        saved.write(contents, Path(path), with_encoder)

    def reads_to_the_end(self, batch: Iterable[Any]) -> list[bool]:
        """Return whether each example is read to its end by all that reads it.

        Args:
            batch: as in `predict`. Passages of questions and products that are ranked are not
                looked at, nor what is left out of a picture.

        Raises:
            ValueError: a mixed batch, or a field that cannot be read.
        """
        examples = asked(batch)
        labels = TASKS[_asking()[type(examples[0])]].labels if examples else None
        if labels is None:
            return [True] * len(examples)
        reading = self.guide.server(_asking()[type(examples[0])]).reading
        texts = [labels.text(one) for one in examples]
        return reading.reader.reads_to_the_end(texts, reading.lengths.text).tolist()

    @overload
    def predict(self, batch: Iterable[Product]) -> list[Category]: ...
    @overload
    def predict(self, batch: Iterable[Review]) -> list[Sentiment]: ...
    @overload
    def predict(self, batch: Iterable[Question]) -> list[Answer]: ...
    @overload
    def predict(self, batch: Iterable[History], top: int | None = None) -> list[Ranking]: ...
    @overload
    def predict(self, batch: Iterable[Any], top: int | None = None) -> list[Any]: ...
    def predict(self, batch, top=None):
        """Predict for a batch of one type, of any size.

        Args:
            batch: a list or another iterable of products (to predict the category), reviews (the
                sentiment), questions (the answer) or histories (the user's next product); their
                labels are not read.
            top: for histories, the number of products to rank; all by default.

        Returns:
            A `Category`, `Sentiment`, `Answer` or `Ranking` for each.

        Raises:
            ValueError: a mixed batch, a field that cannot be read, or a task that cannot be
                answered in this domain.
        """
        examples = asked(batch)
        if not examples:
            return []
        name = _asking()[type(examples[0])]
        if name not in self.adapted:
            reason = "; ".join(self.notes.get(name, ()))
            raise ValueError(f"domain {self.domain.name} has no answers of {name}: {reason}")
        task, adapted, size = TASKS[name], self.adapted[name], TASKS[name].size
        if top is not None:
            top = whole_number("top", top, 1)
            if not task.is_ranking:
                raise ValueError(f"top is {top}; only rankings of histories have a top")
        task.check(adapted, examples, self.domain)
        # Inputs of similar size share a program and are padded no further than needed.
        order = list(range(len(examples)))
        if size is not None:
            order.sort(key=lambda row: size(examples[row]))
        server, found = self.guide.server(name), [None] * len(examples)
        with patience(name, len(examples)) as tell:
            for start in range(0, len(order), SIZES[-1]):
                rows = order[start : start + SIZES[-1]]
                batch = [examples[row] for row in rows]
                answers = task.predict(server, adapted, batch, self.domain, self.shots, top)
                for row, answer in zip(rows, answers, strict=True):
                    found[row] = answer
                tell(start + len(rows))
        return found


def load(
    path: Path | str, encoder: Path | str | None = None, cache: Path | str | None = None
) -> Any:
    """Load a trained guide, or one that was adapted and saved.

    Args:
        path: the folder of an `experiments.guide` run, whose methods serve the tasks they did best
            on in validation; the work folder of a single stage; or a folder that
            `AdaptedGuide.save` wrote.
        encoder: folder of the pretrained encoder that the guide reads, if it reads one; by default
            the one that the folder holds or says.
        cache: folder that keeps the vectors of that encoder.

    Returns:
        A `Guide` for a run, an `AdaptedGuide` for a saved one. Only the folder tells which, so that
        the annotation does not.

    Raises:
        CheckpointError: there is no guide in the folder, one of its files is invalid, or its
            checkpoint does not fit.
        TokenizerError: its tokenizer is damaged.
        StoredError: the file of a learned optimizer is damaged.
    """
    path = Path(path)
    if is_encoder(path):
        raise CheckpointError(
            f"{path}: holds a pretrained encoder; metaguide.from_encoder makes a guide of it"
        )
    return (_load_saved if saved.is_saved(path) else _load_run)(path, encoder, cache)


def _load_run(run: Path, encoder: Path | str | None, cache: Path | str | None) -> Guide:
    config = run_config.read(run)
    config, model, reading, frozen = _opened(run / run_config.FILE, config, encoder, cache)
    like = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    like = {"params": {name: one for name, one in like.items() if name != FROZEN}}
    like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    found = {}
    for name in {one.folder for one in config.serving.values()}:
        stage = run_config.find(run / name)
        meta, rule = restore_stage(run / name, like, {} if stage is None else stage.about)
        found[name] = {**meta, "params": {**meta["params"], **frozen}}, rule
    serving = {
        task: Serving(meta, one.method, one.learning_rate, one.steps, rule)
        for task, one in config.serving.items()
        for meta, rule in [found[one.folder]]
    }
    return Guide(model, reading, serving, config, str(run))


def _load_saved(folder: Path, encoder: Path | str | None, cache: Path | str | None) -> AdaptedGuide:
    found = saved.read(folder)
    encoder = encoder or saved.encoder_in(folder)
    file = folder / saved.FILE
    config, model, reading, frozen = _opened(file, found.config, encoder, cache)
    guide = Guide(model, reading, found.serving(model, frozen), config, found.source)
    adapted = found.adapted(guide.server)
    return AdaptedGuide(guide, found.domain, found.shots, adapted, found.notes, found.waiting)


def _opened(
    file: Path, config: RunConfig, encoder: Path | str | None, cache: Path | str | None
) -> tuple[RunConfig, GuideModel, Reading, Mapping[str, Any]]:
    """Read the encoder and the tokenizer of a guide.

    Args:
        file: the file that describes it; its tokenizer lies beside.
        config: what the file says.
        encoder, cache: as in `load`.

    Returns:
        Its config, with the folder where the encoder was found; its model; how it reads; and the
        parameters of the encoder that do not train.
    """
    pretrained, tuning = encoder_of(file.parent, config, encoder), tuning_of(config)
    if pretrained is not None:
        config = replace(config, encoder=str(encoder or config.encoder))
    vectors, frozen = None, {}
    if pretrained is not None and tuning is not None:
        tokenizer = pretrained.guide_tokenizer
        groups = tuned_params(pretrained, tuning)
        frozen = {name: one for name, one in groups.items() if name == FROZEN}
    else:
        tokenizer = Tokenizer.load(file.parent / run_config.TOKENIZER) if config.layers else None
        vectors = None if pretrained is None else vectors_of(pretrained, cache)
    if tokenizer is not None and config.vocabulary not in (None, tokenizer.size):
        raise CheckpointError(
            f"{file.parent / run_config.TOKENIZER}: it has {tokenizer.size} ids, and the guide was "
            f"trained with {config.vocabulary}; take the file from a copy of the run"
        )
    try:
        model = model_of(config, tokenizer, pretrained)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}, or train the run anew") from error
    ends = None if vectors is None or pretrained is None else pretrained.reads_to_the_end
    return config, model, reading_of(config, tokenizer, vectors, ends), frozen


UNTRAINED: Mapping[str, str] = {
    "classification": "vectors+words",
    "sentiment": "soft-k-means",
    "questions": "zero-shot",
    "recommendation": "zero-shot",
}
"""The method that serves each task in a guide without training."""


def from_encoder(
    folder: Path | str,
    *,
    prefix: str = "",
    pooling: Pooling | None = None,
    length: int | None = None,
    cache: Path | str | None = None,
) -> Guide:
    """Build a guide on a pretrained encoder of texts, without any training.

    It classifies products by the names of their categories, or by examples of them; it tells
    praise from blame after `adapt` has seen examples of both, and better if `unlabelled` lets it
    read reviews without labels; it recommends products like those that a user took, and popular
    ones to a user who took nothing; it answers a question with the sentence of the text that is
    nearest to it. It reads no pictures.

    Args:
        folder: a Hugging Face folder of the BERT family, with `config.json`, `model.safetensors`
            and `tokenizer.json`.
        prefix: put before every text: "query: " for the e5 models, nothing for most others.
        pooling: "mean" or "cls"; by default what the folder says, and "mean" if it says nothing.
        length: most tokens read of a text; by default as many as the encoder has positions.
        cache: folder that keeps the vectors of texts, so that each is computed once.

    Returns:
        The guide.

    Raises:
        EncoderError: the folder holds no such encoder, or a part of it is missing or damaged.
        ValueError: an argument is out of range.
    """
    encoder = load_encoder(folder, prefix=prefix, pooling=pooling, length=length)
    # Of texts only vectors are read, so that numbers of tokens have no meaning.
    tokens = dict.fromkeys(("text_tokens", "pair_tokens", "name_tokens", "max_answer_tokens"), 1)
    config = RunConfig(
        width=encoder.config.width,
        layers=0,
        heads=1,
        dropout=0.0,
        channels=(1,),
        image=False,
        way=10,
        **tokens,
        **description_of(encoder, folder),
    )
    model = model_of(config, None)
    params = init_params(model, jax.random.key(0))
    params["recommendation"] = untrained(params["recommendation"])
    meta = {"params": params}
    reading = reading_of(config, None, vectors_of(encoder, cache), encoder.reads_to_the_end)
    serving = {
        task: Serving(meta, method, 0.0, 0, is_trained=False) for task, method in UNTRAINED.items()
    }
    return Guide(model, reading, serving, config, str(folder))


def description_of(encoder: PretrainedEncoder, folder: Path | str) -> dict[str, Any]:
    """Return the fields of a `RunConfig` that say which encoder a guide reads, and from where."""
    return {
        "encoder": str(folder),
        "encoder_prefix": encoder.prefix,
        "encoder_pooling": encoder.pooling,
        "encoder_length": encoder.length,
        "encoder_width": encoder.config.width,
        "encoder_fingerprint": encoder.fingerprint,
    }


def vectors_of(encoder: PretrainedEncoder, cache: Path | str | None) -> Vectors:
    """Return what makes vectors of texts, and keeps them in the folder `cache`.

    Without a folder, those of the last texts stay in memory, so that adapting further does not
    compute what adapting computed.
    """
    return remembered(encoder.encode) if cache is None else vector_reader(encoder, cache)


def tuning_of(config: RunConfig) -> Tuning | None:
    """Return what trains of the pretrained encoder that a guide is on; None if it is not."""
    if config.encoder_train == "frozen":
        return None
    return Tuning(config.encoder_train, config.encoder_rank, config.encoder_layers)


def model_of(
    config: RunConfig, tokenizer: TextTokenizer | None, pretrained: PretrainedEncoder | None = None
) -> GuideModel:
    """Return the model that a run config describes.

    Args:
        config: the run config.
        tokenizer: the tokenizer whose ids it reads; None if it reads none.
        pretrained: the encoder that it trains; None if it trains none.

    Raises:
        ValueError: the encoder has fewer layers than train, or fewer positions than are read.
    """
    channels, tuning = config.channels if config.image else (), tuning_of(config)
    if pretrained is not None and tuning is not None:
        longest = max(config.text_tokens, config.pair_tokens, config.name_tokens)
        if longest > pretrained.config.length:
            raise ValueError(
                f"texts of {longest} tokens; the encoder reads {pretrained.config.length}"
            )
        fields = {"channels": channels, "buckets": config.buckets}
        return guide_model(tuned_encoder(pretrained, tuning, config.dropout, **fields), config.way)
    encoder = transformer(
        vocabulary=0 if tokenizer is None else tokenizer.size,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        length=max(config.text_tokens, config.pair_tokens),
        dropout=config.dropout,
        channels=channels,
        buckets=config.buckets,
        pretrained=config.encoder_width,
    )
    return guide_model(encoder, config.way)


def encoder_of(
    where: Path, config: RunConfig, folder: Path | str | None
) -> PretrainedEncoder | None:
    """Return the pretrained encoder that a guide was trained on; None if there is none.

    Raises:
        CheckpointError: its encoder is not where it was, or is another one.
    """
    if not config.encoder_width:
        return None
    hint = "give the folder of the encoder that it was trained with, load(run, encoder=FOLDER)"
    try:
        found = load_encoder(
            folder or config.encoder,
            prefix=config.encoder_prefix,
            pooling="cls" if config.encoder_pooling == "cls" else "mean",
            length=config.encoder_length,
        )
    except EncoderError as error:
        raise CheckpointError(f"{where}: {error}; {hint}") from error
    if found.fingerprint != config.encoder_fingerprint:
        raise CheckpointError(
            f"{where}: {folder or config.encoder} holds another encoder than the guide reads; "
            f"{hint}"
        )
    return found


def reading_of(
    config: RunConfig,
    tokenizer: TextTokenizer | None,
    vectors: Vectors | None = None,
    ends: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Reading:
    """Return how the guide of a run config reads examples; see `TextReader`."""
    lengths = Lengths(config.text_tokens, config.pair_tokens, config.name_tokens)
    reader = TextReader(tokenizer, config.buckets, vectors, ends)
    known = frozenset(config.known_classes)
    return Reading(reader, lengths, config.image, config.max_answer_tokens, known)


def _picked(support: Any) -> dict[str, list[Any]]:
    """Return hand-picked examples, checked and keyed by task."""
    asking = {made: name for made, name in _asking().items() if TASKS[name].picked is not None}
    *some, last = (_several(made).lower() for made in asking)
    known = f"{', '.join(some)} and {last}"
    if isinstance(support, str | bytes | Mapping) or not isinstance(support, Iterable):
        raise ValueError(f"support is {reprlib.repr(support)}; give a list of {known}")
    picked: dict[str, list[Any]] = {}
    for one in support:
        if type(one) not in asking:
            raise ValueError(f"support holds a {type(one).__name__}; give {known}")
        picked.setdefault(asking[type(one)], []).append(one)
    checked: dict[str, list[Any]] = {}
    for name, examples in picked.items():
        check = TASKS[name].picked
        assert check is not None
        checked[name] = list(check(examples))
    return checked


def _asking() -> dict[type, str]:
    """Return the task of each type of example."""
    return {task.asks: name for name, task in TASKS.items()}


def _several(made: type) -> str:
    """Return the plural name of a type of example, for messages."""
    name = made.__name__
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"


def whole_number(name: str, value: Any, least: int) -> int:
    """Return an argument that has to be a whole number.

    Raises:
        ValueError: it is of another type, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} is {reprlib.repr(value)}; give a whole number, {least} or more")
    if value < least:
        raise ValueError(f"{name} is {value}; it has to be {least} or more")
    return int(value)


def asked(batch: Any) -> list[Any]:
    """Return the examples of a batch, checked, with pictures in the reader's format.

    Args:
        batch: any iterable of products, reviews, questions or histories, or another task's
            examples, all of one type.

    Returns:
        The examples without their labels.

    Raises:
        ValueError: it is not such an iterable, or a field of an example cannot be read.
    """
    asking = _asking()
    if isinstance(batch, (*asking, str, bytes, Mapping)) or not isinstance(batch, Iterable):
        raise ValueError(
            f"a batch is a list, such as predict([product]); got one {type(batch).__name__}"
        )
    examples = list(batch)
    types = {type(one) for one in examples}
    if len(types) > 1 or not types <= set(asking):
        names = ", ".join(sorted(one.__name__ for one in types))
        *some, last = map(_several, asking)
        raise ValueError(f"a batch holds {', '.join(some)} or {last} of one type; got {names}")
    return [
        TASKS[asking[type(one)]].checked(f"batch[{row}]", one) for row, one in enumerate(examples)
    ]
