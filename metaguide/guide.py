"""A trained guide in three words: `metaguide.load(run).adapt(domain, shots=5).predict(batch)`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from metaguide.answers import Answer, Category, History, Ranking, Sentiment, each_once
from metaguide.arms import ARMS, Way, adaptation
from metaguide.data.catalogue import Domain, Product, Question, Review, read_domain
from metaguide.data.encoding import KINDS, Lengths, product_rows, question_examples, question_rows
from metaguide.data.repeats import without_repeats
from metaguide.data.tokenizer import Encoded, Tokenizer
from metaguide.models.guide import GuideModel, init_params
from metaguide.optimizers import Rule, stored
from metaguide.problems import classification, questions, recommendation, sentiment
from metaguide.training.checkpoint import CheckpointError, restore_meta
from metaguide.types import Learner, Params, Problem

CONFIG, STAGE, SERVING, TOKENIZER = "config.json", "stage.json", "serving.json", "tokenizer.json"
"""Files of a run: its config; which stage it was; for a whole guide, which arm serves what."""


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


@dataclass(frozen=True)
class Guide:
    """A trained guide, before it has met a domain."""

    model: GuideModel
    tokenizer: Tokenizer
    lengths: Lengths
    longest: int
    serving: Mapping[str, Serving]

    def adapt(self, domain: Domain | Path | str, shots: int = 5, seed: int = 0) -> "AdaptedGuide":
        """Adapt to a domain from a few of its examples.

        Args:
            domain: a domain, or the folder of one in the catalogue format. Of examples that repeat
                one another the first is read, with a warning.
            shots: examples to adapt to: of each category, of each sentiment, questions, and
                products of each user. 0 asks the guide as it is.
            seed: of the draw of the examples.

        Returns:
            The adapted guide, for every kind of task that the domain has examples of.

        Raises:
            CatalogueError: the folder is not a domain.
            ValueError: more categories than the guide has slots, or fewer examples than shots.
        """
        if not isinstance(domain, Domain):
            domain = read_domain(Path(domain))
        if shots < 0:
            raise ValueError(f"shots is {shots}; it has to be 0 or more")
        domain = without_repeats(domain, pictures=self.model.image)
        rng = np.random.default_rng(seed)
        adapted = {}
        for kind, serving in self.serving.items():
            if not KINDS[kind](domain):
                continue
            if kind == "recommendation":
                adapted[kind] = _adapt_users(self, serving, domain, shots)
            else:
                adapted[kind] = _adapt_examples(self, kind, serving, domain, shots, rng)
        return AdaptedGuide(self, domain, shots, adapted)


class Adapted(NamedTuple):
    """One kind of task, adapted.

    Attributes:
        learner: whose `predict` reads `state`.
        state: opaque.
        context: of the task.
        chosen: ids of the examples adapted to.
    """

    learner: Learner
    state: Any
    context: Any
    chosen: tuple[str, ...]


@dataclass(frozen=True)
class AdaptedGuide:
    """A guide that has met a domain; `predict` answers by the type of what it is given."""

    guide: Guide
    domain: Domain
    shots: int
    adapted: Mapping[str, Adapted]

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The domain's categories."""
        return _categories(self.domain)

    @overload
    def predict(self, batch: Sequence[Product]) -> list[Category]: ...
    @overload
    def predict(self, batch: Sequence[Review]) -> list[Sentiment]: ...
    @overload
    def predict(self, batch: Sequence[Question]) -> list[Answer]: ...
    @overload
    def predict(self, batch: Sequence[History]) -> list[Ranking]: ...
    def predict(self, batch):
        """Predict for a batch of one type.

        Args:
            batch: products (their category is asked), reviews (their sentiment), questions (their
                answer) or histories (what the user takes next); labels they carry are not read.

        Returns:
            A `Category`, `Sentiment`, `Answer` or `Ranking` for each.

        Raises:
            ValueError: a mixed batch, or a kind of task that the domain gave no examples of.
        """
        kinds = {
            Product: ("classification", _predict_categories),
            Review: ("sentiment", _predict_sentiment),
            Question: ("questions", _predict_answers),
            History: ("recommendation", _predict_rankings),
        }
        if not batch:
            return []
        types = {type(one) for one in batch}
        if len(types) > 1 or not types <= set(kinds):
            names = ", ".join(sorted(one.__name__ for one in types))
            raise ValueError(
                f"a batch holds Products, Reviews, Questions or Histories of one type; got {names}"
            )
        kind, answer = kinds[types.pop()]
        if kind not in self.adapted:
            raise ValueError(
                f"domain {self.domain.name} has no examples of {kind} to adapt to; add them to it"
            )
        return answer(self, self.adapted[kind], list(batch))


def load(run: Path | str) -> Guide:
    """Load a trained guide.

    Args:
        run: the folder of `experiments.guide`, whose arms serve the kinds of task they did best
            on in validation; or the work folder of a single stage.

    Returns:
        The guide.

    Raises:
        CheckpointError: there is no run in the folder, or its checkpoint does not fit.
    """
    run = Path(run)
    config = _json(run / CONFIG)
    serving_path = run / SERVING
    served = (
        _json(serving_path) if serving_path.exists() else _stage_serving(_json(run / STAGE), config)
    )
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
    if not (folder / stored.FILE).is_file():
        return restore_meta(folder, like), None
    rule, theta, _ = stored.load(folder)
    return restore_meta(folder, {**like, "rule": theta}), rule


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


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; give the folder of a run of experiments.guide or of a stage"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); train the run anew") from error


def _categories(domain: Domain) -> tuple[str, ...]:
    return tuple(sorted({str(p.category) for p in domain.products if p.category is not None}))


def _choose(labels: np.ndarray, classes: int, shots: int, where: str, rng) -> np.ndarray:
    """Draw `shots` rows of each class."""
    rows = []
    for number in range(classes):
        members = np.flatnonzero(labels == number)
        if len(members) < shots:
            raise ValueError(
                f"{where}: {shots} shots need as many examples of each class; class {number} has "
                f"{len(members)}; ask for fewer shots"
            )
        rows.append(rng.permutation(members)[:shots])
    return np.concatenate(rows) if rows else np.zeros(0, int)


def _adapt_examples(
    guide: Guide, kind: str, serving: Serving, domain: Domain, shots: int, rng
) -> Adapted:
    context: dict[str, Any] = {}
    if kind == "classification":
        categories = _categories(domain)
        if len(categories) > guide.model.way:
            raise ValueError(
                f"domain {domain.name} has {len(categories)} categories, the guide has slots for "
                f"{guide.model.way}; train it with a larger config.model.way"
            )
        examples: Sequence[Any] = [p for p in domain.products if p.category is not None]
        labels = np.array([categories.index(p.category) for p in examples])
        names = guide.tokenizer.encode(categories, guide.lengths.name).tokens
        context = {"names": jnp.asarray(names), "has_names": jnp.ones(len(names), bool)}
        problem, classes = classification(guide.model, len(categories)), len(categories)
    elif kind == "sentiment":
        examples = [review for review in domain.reviews if review.label is not None]
        labels = np.array([review.label for review in examples])
        problem, classes = sentiment(guide.model), 2
    else:
        examples = question_examples(domain, guide.tokenizer, guide.lengths.pair)
        labels = np.zeros(len(examples), int)
        problem, classes = questions(guide.model, guide.longest), 1
    rows = _choose(labels, classes, shots, f"domain {domain.name}, {kind}", rng)
    chosen = [examples[row] for row in rows]
    learner = _learner(serving, problem, shots)
    if not shots:
        return Adapted(learner, serving.meta["params"], context, ())
    support = {
        **_rows(guide, kind, chosen, domain),
        "label": jnp.asarray(labels[rows], jnp.int32),
        "mask": jnp.ones(len(rows), bool),
    }
    if kind == "sentiment":
        support["stars"] = jnp.asarray([review.stars or 0.0 for review in chosen], jnp.float32)
    state = jax.jit(learner.adapt)(serving.meta, support, context, None)[0]
    return Adapted(learner, state, context, tuple(one.id for one in chosen))


def _adapt_users(guide: Guide, serving: Serving, domain: Domain, shots: int) -> Adapted:
    """Users adapt when they ask; what can be done before is to lay the catalogue out."""
    rows = product_rows(domain.products, guide.tokenizer, guide.lengths.text)
    if not guide.model.image:
        rows = {"tokens": rows["tokens"]}
    context = {
        "products": jax.tree.map(jnp.asarray, rows),
        "candidates": jnp.ones(len(domain.products), bool),
    }
    learner, longest = _learner(serving, recommendation(guide.model), shots), max(1, shots)

    def rank(meta: Params, users, context):
        def one(item, mask):
            steps = jnp.arange(longest)
            support = {
                "item": item,
                "history": jnp.broadcast_to(item, (longest, longest)),
                "history_mask": mask & (steps < steps[:, None]),
                "mask": mask,
            }
            state, _ = learner.adapt(meta, support, context, None)
            query = {"history": item[None], "history_mask": mask[None]}
            return learner.predict(state, query, context)["scores"][0]

        return {"scores": jax.vmap(one)(users["item"], users["mask"])}

    return Adapted(learner._replace(predict=rank), serving.meta, context, ())


def _learner(serving: Serving, problem: Problem, shots: int) -> Learner:
    way = ARMS[serving.arm].way if shots else Way("nothing")
    return adaptation(way, problem, serving.rate, serving.steps, serving.rule)


def _rows(guide: Guide, kind: str, examples: Sequence[Any], domain: Domain) -> dict[str, Any]:
    """Encode examples as the rows that their problem reads."""
    if kind == "classification":
        rows = product_rows(examples, guide.tokenizer, guide.lengths.text)
        rows = rows if guide.model.image else {"tokens": rows["tokens"]}
    elif kind == "sentiment":
        texts = [review.text for review in examples]
        rows = {"tokens": guide.tokenizer.encode(texts, guide.lengths.text).tokens}
    else:
        rows = question_rows(examples, guide.tokenizer, guide.lengths.pair, domain.name)
    return jax.tree.map(jnp.asarray, dict(rows))


def _outputs(adapted: Adapted, query) -> dict[str, np.ndarray]:
    return jax.device_get(jax.jit(adapted.learner.predict)(adapted.state, query, adapted.context))


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


def _predict_rankings(adapted_guide: AdaptedGuide, adapted: Adapted, batch: list[History]):
    index = {product.id: row for row, product in enumerate(adapted_guide.domain.products)}
    for one in batch:
        for product in one.products:
            if product not in index:
                raise ValueError(
                    f"user {one.user!r} took product {product!r}, which domain "
                    f"{adapted_guide.domain.name} does not have; add it to the products"
                )
    shots = max(1, adapted_guide.shots)

    recent = [[index[product] for product in each_once(one.products)][-shots:] for one in batch]
    items = np.array([row + [0] * (shots - len(row)) for row in recent], np.int32)
    known = [len(row) if adapted_guide.shots else 0 for row in recent]
    masks = np.array([[i < count for i in range(shots)] for count in known])
    scores = _outputs(adapted, {"item": items, "mask": masks})["scores"]
    rankings = []
    for one, score in zip(batch, scores, strict=True):
        order = [adapted_guide.domain.products[row].id for row in np.argsort(-score, kind="stable")]
        rankings.append(Ranking(one.user, tuple(p for p in order if p not in one.products)))
    return rankings
