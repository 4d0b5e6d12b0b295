"""A trained guide in three words: `metaguide.load(run).adapt(domain, shots=5).predict(batch)`."""

import os
import reprlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from metaguide.answers import (
    KIND_ASKED,
    Answer,
    Category,
    History,
    Ranking,
    Sentiment,
    asked,
    whole_number,
)
from metaguide.arms import ARMS, Way, adaptation
from metaguide.data.catalogue import (
    Domain,
    Product,
    Question,
    Review,
    checked_domain,
    checked_part,
    read_domain,
)
from metaguide.data.encoding import KINDS, Lengths, product_rows, question_examples, question_rows
from metaguide.data.histories import each_once
from metaguide.data.repeats import without_repeats
from metaguide.data.tokenizer import Encoded, Tokenizer, TokenizerError
from metaguide.files import MIB, FileFault, read_json
from metaguide.models.guide import GuideModel, init_params, with_slots
from metaguide.optimizers import Rule, stored
from metaguide.problems.guide import classification, questions, recommendation, sentiment
from metaguide.training.checkpoint import CheckpointError, restore_meta
from metaguide.training.program import SIZES, in_pieces, padded_size
from metaguide.training.progress import patience
from metaguide.types import Learner, Params

CONFIG, STAGE, SERVING, TOKENIZER = "config.json", "stage.json", "serving.json", "tokenizer.json"
"""Files of a run: its config; which stage it was; for a whole guide, which arm serves what."""

MOST = 16 * MIB
"""Bytes of a JSON file of a run."""

LARGEST_RATE, MOST_STEPS = 1e6, 10_000
"""Bounds of what adapts: what is beyond them is a damaged file."""

PARTS = {
    "classification": "products",
    "sentiment": "reviews",
    "questions": "questions",
    "recommendation": "interactions",
}
"""The part of a domain that each kind of task adapts to."""

Support = Iterable[Product | Review | Question]

HISTORY_SIZES = (16, 64, 256, 1024)
"""Products that histories are padded to."""

LONGEST_HISTORY = HISTORY_SIZES[-1]
"""Products of a history that are read, the last ones: older ones have no weight left."""

FLOATS_AT_ONCE = 2**26
"""Numbers that a ranking holds at a time, 256 MiB of them."""


class Serving(NamedTuple):
    """What serves one kind of task: parameters, and how they adapt.

    Attributes:
        meta: {"params": the guide's}, and "rule" beside them where a learned optimizer adapts them.
        arm: a name in `metaguide.arms.ARMS`.
        rate: of its gradient descent, or its penalty.
        steps: of its gradient descent.
        rule: of the learned optimizer.
    """

    meta: Params
    arm: str
    rate: float
    steps: int
    rule: Rule | None = None

    def __repr__(self) -> str:
        """The arm: parameters are thousands of numbers."""
        return f"<Serving by {self.arm}, rate {self.rate:g}, {self.steps} steps>"


@dataclass(frozen=True, repr=False)
class Guide:
    """A trained guide, before it has met a domain."""

    model: GuideModel
    tokenizer: Tokenizer
    lengths: Lengths
    longest: int
    serving: Mapping[str, Serving]
    _programs: dict[Any, Any] = field(default_factory=dict, init=False, compare=False)
    """What has been compiled: another domain of the same sizes does not compile anew."""

    def __repr__(self) -> str:
        """Which arm serves which kind of task."""
        arms = ", ".join(f"{kind} by {one.arm}" for kind, one in self.serving.items())
        return f"<Guide: {arms or 'serves nothing'}>"

    @overload
    def adapt(
        self, domain: Domain, shots: int = 5, seed: int = 0, support: Support = ()
    ) -> "AdaptedGuide": ...
    @overload
    def adapt(
        self, domain: Path | str, shots: int = 5, seed: int = 0, support: Support = ()
    ) -> "AdaptedGuide": ...
    def adapt(self, domain, shots=5, seed=0, support=()):
        """Adapt to a domain from a few of its examples.

        What cannot be adapted to in full is adapted to as far as can be, with a warning, and
        stands in `AdaptedGuide.notes`. A class with fewer examples than `shots` gives those it
        has. Where there is none to adapt to, the guide answers as it was trained, if it can.

        Args:
            domain: a domain, or the folder of one in the catalogue format. Of examples that repeat
                one another the first is read, with a warning.
            shots: examples to adapt to: of each category, of each sentiment, questions, and
                products of each user. 0 asks the guide as it is.
            seed: of the draw of the examples.
            support: examples to adapt to, picked by hand. For the kinds of task that they are of,
                they take the place of the draw; `shots` and `seed` say nothing there.

        Returns:
            The adapted guide.

        Raises:
            CatalogueError: the folder is not a domain, or a domain made in Python holds what
                `read_domain` would refuse.
            ValueError: another argument is not as above; an example of the support has no label.
        """
        shots, seed = whole_number("shots", shots, 0), whole_number("seed", seed, 0)
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
        rng = np.random.default_rng(seed)
        adapted, notes, urgent = {}, {}, []
        for kind in dict.fromkeys((*self.serving, *KINDS)):
            if kind not in self.serving:
                notes[kind] = (f"this guide was not trained on {kind}",)
                continue
            if kind == "recommendation":
                adapted[kind], notes[kind] = _adapt_users(self, domain, shots)
            else:
                adapted[kind], notes[kind] = _adapt_examples(
                    self, kind, domain, shots, rng, picked.get(kind)
                )
            # What a domain does not have at all is no surprise.
            if notes[kind] and (getattr(domain, PARTS[kind]) or kind in picked):
                urgent.append(kind)
        adapted = {kind: one for kind, one in adapted.items() if one is not None}
        notes = {kind: said for kind, said in notes.items() if said}
        if not adapted:
            urgent = [kind for kind in notes if kind in self.serving]
        for kind in urgent:
            said = "; ".join(notes[kind])
            warnings.warn(f"domain {domain.name}, {kind}: {said}", stacklevel=2)
        return AdaptedGuide(self, domain, shots, adapted, notes)


class Adapted(NamedTuple):
    """One kind of task, adapted.

    Attributes:
        learner: whose `predict` reads `state`; it is jitted.
        state: opaque.
        context: of the task.
        chosen: ids of the examples adapted to.
        classes: names of the classes, where the domain has its own.
    """

    learner: Learner
    state: Any
    context: Any
    chosen: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """How many examples it adapted to: the state is thousands of numbers."""
        return f"<Adapted to {len(self.chosen)} examples>"


@dataclass(frozen=True, repr=False)
class AdaptedGuide:
    """A guide that has met a domain; `predict` answers by the type of what it is given.

    Attributes:
        guide: that adapted.
        domain: what it adapted to.
        shots: of each class.
        adapted: by kind of task, all that `predict` answers.
        notes: by kind of task, what could not be adapted to, and why; kinds without are left out.
    """

    guide: Guide
    domain: Domain
    shots: int
    adapted: Mapping[str, Adapted]
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The domain, and to how many examples of each kind the guide adapted."""
        parts = ", ".join(f"{kind} {len(one.chosen)}" for kind, one in self.adapted.items())
        return f"<AdaptedGuide to {self.domain.name!r}, {self.shots} shots: {parts or 'nothing'}>"

    @property
    def categories(self) -> tuple[str, ...]:
        """The domain's categories."""
        found = self.adapted.get("classification")
        return found.classes if found else ()

    @cached_property
    def _catalogue(self) -> "Catalogue":
        return _encoded_catalogue(self.guide, self.domain)

    @overload
    def predict(self, batch: Iterable[Product]) -> list[Category]: ...
    @overload
    def predict(self, batch: Iterable[Review]) -> list[Sentiment]: ...
    @overload
    def predict(self, batch: Iterable[Question]) -> list[Answer]: ...
    @overload
    def predict(self, batch: Iterable[History], top: int | None = None) -> list[Ranking]: ...
    def predict(self, batch, top=None):
        """Predict for a batch of one type, of any size.

        Args:
            batch: products (their category is asked), reviews (their sentiment), questions (their
                answer) or histories (what the user takes next), in a list or another iterable;
                labels they carry are not read.
            top: of histories, how many products to rank; all by default.

        Returns:
            A `Category`, `Sentiment`, `Answer` or `Ranking` for each.

        Raises:
            ValueError: a mixed batch, a field that cannot be read, or a kind of task that cannot be
                answered in this domain.
        """
        answers = {
            "classification": _predict_categories,
            "sentiment": _predict_sentiment,
            "questions": _predict_answers,
            "recommendation": partial(_predict_rankings, top=top),
        }
        examples = asked(batch)
        if not examples:
            return []
        kind = KIND_ASKED[type(examples[0])]
        if kind not in self.adapted:
            reason = "; ".join(self.notes.get(kind, ()))
            raise ValueError(f"domain {self.domain.name} has no answers of {kind}: {reason}")
        if top is not None:
            top = whole_number("top", top, 1)
            if kind != "recommendation":
                raise ValueError(f"top is {top}; only rankings of histories have a top")
        # Histories of like length share a program, and are padded to no more than they need.
        order = list(range(len(examples)))
        if kind == "recommendation":
            _check_known(examples, self.domain)
            order.sort(key=lambda row: len(examples[row].products))
        found: list[Any] = [None] * len(examples)
        with patience(kind, len(examples)) as tell:
            for start in range(0, len(order), SIZES[-1]):
                rows = order[start : start + SIZES[-1]]
                for row, answer in zip(
                    rows,
                    answers[kind](self, self.adapted[kind], [examples[row] for row in rows]),
                    strict=True,
                ):
                    found[row] = answer
                tell(start + len(rows))
        return found


def load(run: Path | str) -> Guide:
    """Load a trained guide.

    Args:
        run: the folder of `experiments.guide`, whose arms serve the kinds of task they did best
            on in validation; or the work folder of a single stage.

    Returns:
        The guide.

    Raises:
        CheckpointError: there is no run in the folder, one of its files is not what a run writes,
            or its checkpoint does not fit.
    """
    run = Path(run)
    try:
        return _loaded(run)
    except (CheckpointError, stored.StoredError, TokenizerError):
        raise
    # What a damaged config or serving.json says is looked up, compared and made a model of.
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(
            f"{run}: {CONFIG}, {STAGE} or {SERVING} in it is not what a run writes ({what}); "
            "train the run anew, or take those files from a copy"
        ) from error


def _loaded(run: Path) -> Guide:
    config = _json(run / CONFIG)
    serving_path = run / SERVING
    served = (
        _json(serving_path) if serving_path.exists() else _stage_serving(_json(run / STAGE), config)
    )
    for kind, one in served.items():
        _check_serving(serving_path if serving_path.exists() else run / CONFIG, kind, one)
    tokenizer = Tokenizer.load(run / TOKENIZER)
    model = model_of(config, tokenizer)
    like = {"params": jax.eval_shape(partial(init_params, model), jax.random.key(0))}
    like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    found = {name: restored(run / name, like) for name in {s["folder"] for s in served.values()}}
    text, episodes = config["text"], config["episodes"]
    return Guide(
        model,
        tokenizer,
        Lengths(text["text"], text["pair"], text["name"]),
        episodes["longest"],
        {
            kind: Serving(meta, one["arm"], one["rate"], one["steps"], rule)
            for kind, one in served.items()
            for meta, rule in [found[one["folder"]]]
        },
    )


def restored(folder: Path, like: Params) -> tuple[Params, Rule | None]:
    """Read what a stage has learned, and which rule its learned optimizer is of, if it has one.

    Args:
        folder: of the stage.
        like: {"params": ...} of the same shapes and placement; values are not read.

    Returns:
        The meta-parameters, and the rule or None.

    Raises:
        CheckpointError: there is no checkpoint, it is of another model, or it is damaged.
        StoredError: the file beside it that describes the rule is damaged.
    """
    said = _json(folder / STAGE) if (folder / STAGE).exists() else {}
    of = {
        name: said[name]
        for name in ("stage", "learner", "seed")
        if isinstance(said.get(name), str | int)
    }
    if not (folder / stored.FILE).is_file():
        return restore_meta(folder, like, of), None
    rule, theta, _ = stored.load(folder)
    return restore_meta(folder, {**like, "rule": theta}, of), rule


def model_of(config: Mapping[str, Any], tokenizer: Tokenizer) -> GuideModel:
    """Return the model that a resolved config describes."""
    model = config["model"]
    return GuideModel(
        vocabulary=tokenizer.size,
        width=model["width"],
        layers=model["layers"],
        heads=model["heads"],
        length=max(config["text"]["text"], config["text"]["pair"]),
        dropout=model["dropout"],
        way=model["way"],
        channels=tuple(model["channels"]),
        image=model["image"],
    )


def _stage_serving(stage: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Serve every kind of task by fine-tuning the parameters of a single stage."""
    learner = stage.get("learner") or "fine-tuning"
    way = ARMS[learner].way
    whole = learner if way.adapts == "all" or way.is_learned else "fine-tuning"
    users = learner if way.adapts == "head" and way.is_learned else "head-only"
    arms = {kind: users if kind == "recommendation" else whole for kind in KINDS}
    inner_rate, steps = config["metatrain"]["inner_rate"], config["adapt"]["steps"]
    return {
        kind: {
            "folder": ".",
            "arm": arm,
            "rate": 1.0 if ARMS[arm].way.is_learned else inner_rate,
            "steps": steps,
        }
        for kind, arm in arms.items()
    }


def _check_serving(path: Path, kind: str, one: Mapping[str, Any]) -> None:
    """Refuse a rate or a number of steps that cannot serve, before anything is compiled."""
    rate, steps = one.get("rate"), one.get("steps")
    # NaN is not within the bounds either.
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= LARGEST_RATE:
        raise CheckpointError(
            f"{path}: {kind}: rate is {rate!r}; give a number from 0 to {LARGEST_RATE:g}, or make "
            "the file anew by the run"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= MOST_STEPS:
        raise CheckpointError(
            f"{path}: {kind}: steps is {steps!r}; give a whole number from 0 to {MOST_STEPS}, or "
            "make the file anew by the run"
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, MOST)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; give the folder of a run of experiments.guide or of a stage"
        ) from None
    except FileFault as error:
        raise CheckpointError(f"{path}: {error}; train the run anew") from error


def _picked(support: Any) -> dict[str, list[Any]]:
    """Return examples that were picked by hand, checked, by their kind of task."""
    if isinstance(support, str | bytes | Mapping) or not isinstance(support, Iterable):
        raise ValueError(
            f"support is {reprlib.repr(support)}; give a list of products, reviews and questions"
        )
    picked: dict[str, list[Any]] = {}
    for one in support:
        kind = KIND_ASKED.get(type(one))
        if kind is None or kind == "recommendation":
            raise ValueError(
                f"support holds a {type(one).__name__}; give products, reviews and questions"
            )
        picked.setdefault(kind, []).append(one)
    checked = {k: list(checked_part("support", PARTS[k], rows)) for k, rows in picked.items()}
    for kind, label in (("classification", "category"), ("sentiment", "label")):
        for one in checked.get(kind, ()):
            if getattr(one, label) is None:
                what = "category" if kind == "classification" else "sentiment or stars but 3"
                raise ValueError(f"support: {one.id!r} has no {what} to adapt to; add it")
    return checked


def _draw(labels: np.ndarray, classes: Sequence[str], shots: int, rng) -> np.ndarray:
    """Draw `shots` rows of each class, or as many as it has."""
    members = [np.flatnonzero(labels == number) for number in range(len(classes))]
    rows = [rng.permutation(of_class)[:shots] for of_class in members]
    return np.concatenate(rows) if rows else np.zeros(0, int)


def _lacking(labels: np.ndarray, classes: Sequence[str], shots: int) -> list[str]:
    """Say by name which classes have fewer examples than `shots`."""
    counts = [int((labels == number).sum()) for number in range(len(classes))]
    wanted = f"{shots} shot{'s' if shots > 1 else ''}"
    return [
        f"{name} has {count or 'no'} example{'s' if count != 1 else ''}, fewer than {wanted}"
        for name, count in zip(classes, counts, strict=True)
        if count < shots and len(labels)
    ]


def _adapt_examples(
    guide: Guide, kind: str, domain: Domain, shots: int, rng, picked: list[Any] | None
) -> tuple[Adapted | None, tuple[str, ...]]:
    """Adapt to one kind of task; also say what could not be adapted to."""
    serving, context, names = guide.serving[kind], {}, ()
    if kind == "classification":
        examples: Sequence[Any] = picked or [p for p in domain.products if p.category is not None]
        named = {str(p.category) for p in (*domain.products, *examples) if p.category is not None}
        names = tuple(sorted(named))
        if not names:
            return None, ("no product has a category, so there are none to tell apart; add some",)
        labels = np.array([names.index(one.category) for one in examples], int)
        tokens = guide.tokenizer.encode(names, guide.lengths.name).tokens
        context = {"names": tokens, "has_names": np.ones(len(names), bool)}
        classes = [f"category {name!r}" for name in names]
    elif kind == "sentiment":
        examples = picked or [review for review in domain.reviews if review.label is not None]
        labels = np.array([review.label for review in examples], int)
        classes = ["sentiment 'negative'", "sentiment 'positive'"]
    else:
        own = domain if picked is None else replace(domain, questions=tuple(picked))
        examples = question_examples(own, guide.tokenizer, guide.lengths.pair)
        labels, classes = np.zeros(len(examples), int), ["the domain"]
    rows = np.arange(len(examples)) if picked else _draw(labels, classes, shots, rng)
    notes = _lacking(labels, classes, 1 if picked else shots)
    zero = _learner(guide, kind, len(classes), adapts=False)
    # Without the other class, every review would be of the one.
    one_sided = kind == "sentiment" and 0 < len(rows) and len(set(labels[rows])) < 2
    if not len(rows) or one_sided:
        if picked or shots:
            notes += ["no examples to adapt to"] * (not len(rows))
            notes += ["it answers as it was trained, without adapting"]
        return Adapted(zero, _start(guide, kind, len(classes)), context, (), names), tuple(notes)
    chosen: list[Any] = [examples[row] for row in rows]
    support = {
        **_rows(guide, kind, chosen, domain),
        "label": labels[rows].astype(np.int32),
        "mask": np.ones(len(rows), bool),
    }
    if kind == "sentiment":
        support["stars"] = np.array([review.stars or 0.0 for review in chosen], np.float32)
    learner = _learner(guide, kind, len(classes), adapts=True)
    meta = {**serving.meta, "params": _start(guide, kind, len(classes))}
    state = learner.adapt(meta, support, context)
    if not _is_finite(state):
        notes += [
            f"adaptation by {serving.arm} diverged (rate {serving.rate:g}, {serving.steps} steps); "
            "it answers as it was trained, without adapting"
        ]
        return Adapted(zero, meta["params"], context, (), names), tuple(notes)
    return Adapted(learner, state, context, tuple(one.id for one in chosen), names), tuple(notes)


def _start(guide: Guide, kind: str, classes: int) -> Params:
    """Return what adaptation starts from, with a slot for each class."""
    params = guide.serving[kind].meta["params"]
    return with_slots(params, classes) if kind == "classification" else params


def _is_finite(tree: Any) -> bool:
    leaves = jax.device_get(jax.tree.leaves(tree))
    return all(np.isfinite(leaf).all() for leaf in leaves)


class Catalogue(NamedTuple):
    """The products of a domain, encoded once.

    Attributes:
        ids: of the products.
        rows: place of each product, by id.
        context: what a ranking reads: {"vectors": float32 [products, width], "candidates"}.
    """

    ids: tuple[str, ...]
    rows: Mapping[str, int]
    context: Mapping[str, Any]


def _encoded_catalogue(guide: Guide, domain: Domain) -> Catalogue:
    def encode(params, rows):
        image = rows.get("image"), rows.get("has_image")
        encoding: Any = guide.model.apply(
            {"params": params}, rows["tokens"], *image, method="encode"
        )
        return {"vector": encoding.vector}

    program = guide._programs.setdefault("catalogue", jax.jit(encode))
    params, pieces = guide.serving["recommendation"].meta["params"], []
    with patience("encoding the products", len(domain.products)) as tell:
        for start in range(0, len(domain.products), SIZES[-1]):
            products = domain.products[start : start + SIZES[-1]]
            rows = _product_rows(guide, products)
            pieces.append(in_pieces(partial(program, params), rows)["vector"])
            tell(start + len(products))
    ids = tuple(product.id for product in domain.products)
    context = {"vectors": np.concatenate(pieces), "candidates": np.ones(len(ids), bool)}
    return Catalogue(ids, {one: row for row, one in enumerate(ids)}, jax.device_put(context))


def _adapt_users(
    guide: Guide, domain: Domain, shots: int
) -> tuple[Adapted | None, tuple[str, ...]]:
    """Users adapt when they ask; the catalogue is encoded when the first one does."""
    if not domain.products:
        return None, ("there are no products to rank; add them",)
    adapts = shots > 0
    learner = _learner(guide, "recommendation", 0, adapts)
    meta = guide.serving["recommendation"].meta
    return Adapted(learner, meta, {}, ()), ()


def _ranker(learner: Learner):
    """Return (meta, users, context) -> {"scores"}: each user adapts, and is then asked about."""

    def rank(meta: Params, users, context):
        def one(user):
            steps, count = jnp.arange(len(user["history"])), len(user["item"])
            known = steps < user["taken"]
            support = {
                "item": user["item"],
                "history": jnp.broadcast_to(user["history"], (count, len(steps))),
                "history_mask": steps < user["before"][:, None],
                "mask": user["mask"],
            }
            state, _ = learner.adapt(meta, support, context, None)
            query = {"history": user["history"][None], "history_mask": known[None]}
            return learner.predict(state, query, context)["scores"][0]

        return {"scores": jax.vmap(one)(users)}

    return rank


def _learner(guide: Guide, kind: str, classes: int, adapts: bool) -> Learner:
    """Return how a kind of task adapts, jitted: `adapt` is (meta, support, context) -> state."""
    known = guide._programs.get((kind, classes, adapts))
    if known is not None:
        return known
    serving = guide.serving[kind]
    if kind == "classification":
        way = max(classes, guide.model.way)
        problem = classification(guide.model.clone(way=way), classes)
    elif kind == "sentiment":
        problem = sentiment(guide.model)
    elif kind == "questions":
        problem = questions(guide.model, guide.longest)
    else:
        problem = recommendation(guide.model)
    way = ARMS[serving.arm].way if adapts else Way("nothing")
    learner = adaptation(way, problem, serving.rate, serving.steps, serving.rule)
    predict = _ranker(learner) if kind == "recommendation" else learner.predict
    jitted = learner._replace(
        adapt=jax.jit(
            lambda meta, support, context: learner.adapt(meta, support, context, None)[0]
        ),
        predict=jax.jit(predict),
    )
    return guide._programs.setdefault((kind, classes, adapts), jitted)


def _product_rows(guide: Guide, products: Sequence[Product]) -> dict[str, Any]:
    rows = product_rows(products, guide.tokenizer, guide.lengths.text)
    return dict(rows) if guide.model.image else {"tokens": rows["tokens"]}


def _rows(guide: Guide, kind: str, examples: Sequence[Any], domain: Domain) -> dict[str, Any]:
    """Encode examples as the rows that their problem reads."""
    if kind == "classification":
        rows = _product_rows(guide, examples)
    elif kind == "sentiment":
        texts = [review.text for review in examples]
        rows = {"tokens": guide.tokenizer.encode(texts, guide.lengths.text).tokens}
    else:
        rows = question_rows(examples, guide.tokenizer, guide.lengths.pair, domain.name)
    return dict(rows)


def _outputs(adapted: Adapted, query) -> dict[str, np.ndarray]:
    """Ask for the rows of `query`, in pieces of a few sizes.

    Raises:
        ValueError: an answer is not finite.
    """

    def ask(rows):
        return adapted.learner.predict(adapted.state, rows, adapted.context)

    outputs = in_pieces(ask, query)
    for name, leaf in outputs.items():
        # Of spans only where they stand comes out, and `finite`, whether their scores are.
        if not (leaf.all() if name == "finite" else np.isfinite(leaf).all()):
            name = "span scores" if name == "finite" else name
            raise ValueError(
                f"the guide's {name} are not finite: it diverged; adapt to fewer shots, or serve "
                "another arm"
            )
    return outputs


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _predict_categories(adapted_guide: AdaptedGuide, adapted: Adapted, batch: list[Product]):
    rows = _rows(adapted_guide.guide, "classification", batch, adapted_guide.domain)
    chances = _softmax(_outputs(adapted, rows)["logits"])
    names = adapted_guide.categories
    return [
        Category(names[int(chance.argmax())], dict(zip(names, map(float, chance), strict=True)))
        for chance in chances
    ]


def _predict_sentiment(adapted_guide: AdaptedGuide, adapted: Adapted, batch: list[Review]):
    rows = _rows(adapted_guide.guide, "sentiment", batch, adapted_guide.domain)
    outputs = _outputs(adapted, rows)
    positive = _softmax(outputs["logits"])[:, 1]
    stars = outputs.get("stars", [None] * len(batch))
    return [
        Sentiment(
            "positive" if chance > 0.5 else "negative",
            float(chance),
            None if star is None else float(star),
        )
        for chance, star in zip(positive, stars, strict=True)
    ]


def _predict_answers(adapted_guide: AdaptedGuide, adapted: Adapted, batch: list[Question]):
    guide = adapted_guide.guide
    asked = [Question(one.id, one.question, one.text) for one in batch]
    rows = _rows(guide, "questions", asked, adapted_guide.domain)
    outputs = _outputs(adapted, {"tokens": rows["tokens"]})
    encoded: Encoded = guide.tokenizer.encode_pairs(
        [one.question for one in batch], [one.text for one in batch], guide.lengths.pair
    )
    answers = []
    for row, one in enumerate(batch):
        first, last = int(outputs["start"][row]), int(outputs["end"][row])
        if first == 0:
            answers.append(Answer(None, None))
            continue
        offsets = encoded.offsets[row, int(outputs["window"][row])]
        span = int(offsets[first, 0]), int(offsets[last, 1])
        answers.append(Answer(span, one.text[span[0] : span[1]]))
    return answers


def _check_known(histories: Sequence[History], domain: Domain) -> None:
    known = {product.id for product in domain.products}
    for one in histories:
        for product in one.products:
            if product not in known:
                raise ValueError(
                    f"user {one.user!r} took product {product!r}, which domain {domain.name} does "
                    "not have; add it to the products"
                )
    long = [one.user for one in histories if len(one.products) > LONGEST_HISTORY]
    if long:
        warnings.warn(
            f"{len(long)} histories, such as that of user {long[0]!r}, have more than "
            f"{LONGEST_HISTORY} products; the last {LONGEST_HISTORY} are read",
            stacklevel=3,
        )


def _predict_rankings(
    adapted_guide: AdaptedGuide, adapted: Adapted, batch: list[History], top: int | None
):
    catalogue, shots = adapted_guide._catalogue, adapted_guide.shots
    taken = [[catalogue.rows[product] for product in each_once(one.products)] for one in batch]
    read = [rows[-LONGEST_HISTORY:] for rows in taken]
    length = padded_size(max(map(len, read)), HISTORY_SIZES)
    users: dict[str, np.ndarray] = {
        "history": np.array([rows + [0] * (length - len(rows)) for rows in read], np.int32),
        "taken": np.array([len(rows) for rows in read], np.int32),
    }
    # The last products are what a user adapts to, each asked about with all those before it.
    count = max(1, shots)
    first = np.maximum(users["taken"] - shots, 0)[:, None]
    users["before"] = (first + np.arange(count)).astype(np.int32)
    users["mask"] = (users["before"] < users["taken"][:, None]) & (shots > 0)
    places = np.minimum(users["before"], length - 1)
    users["item"] = np.take_along_axis(users["history"], places, axis=1)

    def ask(rows):
        return adapted.learner.predict(adapted.state, rows, catalogue.context)

    most = _users_at_once(adapted_guide, len(catalogue.ids), length)
    rankings = []
    for start in range(0, len(batch), most):
        rows = slice(start, start + most)
        scores = in_pieces(ask, {name: leaf[rows] for name, leaf in users.items()}, most)["scores"]
        for one, mine, score in zip(batch[rows], taken[rows], scores, strict=True):
            if not np.isfinite(score).all():
                raise ValueError(
                    f"the scores of user {one.user!r} are not finite: adaptation diverged; adapt "
                    "with shots=0, or serve another arm"
                )
            free = np.ones(len(score), bool)
            free[mine] = False
            order = np.argsort(-score, kind="stable").astype(np.int32)
            order = order[free[order]][:top].copy()
            by = "history" if mine else "no history"
            rankings.append(Ranking(one.user, score[order], by, catalogue.ids, order))
    return rankings


def _users_at_once(adapted_guide: AdaptedGuide, products: int, length: int) -> int:
    """Return how many users fit into the memory that a call may take."""
    guide, shots = adapted_guide.guide, max(1, adapted_guide.shots)
    serving = guide.serving["recommendation"]
    head = sum(leaf.size for leaf in jax.tree.leaves(serving.meta["params"]["recommendation"]))
    # Scores of all products for each shot, the user's own products, and what leads to their
    # gradient. A learned optimizer remembers some 80 numbers a parameter.
    floats = 8 * (shots + 1) * (products + length * guide.model.width)
    floats += head * (200 if serving.rule else 8)
    return max(1, min(SIZES[-1], FLOATS_AT_ONCE // floats))
