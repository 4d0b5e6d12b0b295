"""Product classification: predict a product's category from its text and picture."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from metaguide.data.catalogue import CatalogueError, Domain, Product, checked_example
from metaguide.data.encoding import Table, labelled_table, product_rows, stack, stack_rows
from metaguide.data.repeats import distinct_products
from metaguide.data.texts import product_text
from metaguide.evaluation import baselines
from metaguide.evaluation.rows import Scoring, agreement
from metaguide.models.guide import GuideModel
from metaguide.models.heads import ClassificationHead, with_slots
from metaguide.objectives.tasks import classification_loss
from metaguide.padding import one_after_another
from metaguide.tasks import labelled
from metaguide.tasks.labelled import Labelled, Labelling, labelled_task, queried_rows
from metaguide.tasks.problem import (
    encode_examples,
    features_of,
    problem_of,
    score_classes,
    use_head,
)
from metaguide.tasks.serving import Reading, softmax
from metaguide.tasks.task import Labels, Outcome
from metaguide.types import Batch, Metrics, Params, Problem

NAME = "classification"

HIDDEN = 0.5
"""Share of the names whose vectors a training step does not see, if names have sketches too."""


class Category(NamedTuple):
    """The predicted category of a product.

    Attributes:
        category: the most probable category.
        probabilities: probabilities of all categories of the domain, keyed by name.
    """

    category: str
    probabilities: Mapping[str, float]


def classification(model: GuideModel, way: int) -> Problem:
    """Build N-way classification of products by text and picture, with class names as context.

    `encoded` holds the vectors and sketches of the examples and of the class names; the logits
    compare them and add a linear head of N slots. Metric learners and probes read both of an
    example: its sketch tells apart words that no training text has. Where the encoder does not
    compare names that training has never seen, the vectors of these are 0.
    """

    def encode(
        params: Params, batch: Batch, context: Any, key: Key[Array, ""] | None
    ) -> dict[str, Array]:
        # The names are encoded as additional rows without a picture: one pass instead of two.
        given = [(field, names) for field, names in context["names"].items() if field in batch]
        rows = {field: one_after_another(batch[field], names) for field, names in given}
        if "image" in batch:
            blank = jnp.zeros((way, *batch["image"].shape[1:]), batch["image"].dtype)
            rows["image"] = jnp.concatenate([batch["image"], blank])
            rows["has_image"] = jnp.concatenate([batch["has_image"], jnp.zeros((way,), bool)])
        encoding = encode_examples(model, params, rows, key)
        encoded = {"vector": encoding.vector[:-way], "names": encoding.vector[-way:]}
        if key is None and not model.encoder.compares_names:
            # In training they are shown: telling classes apart by them is what forms the encoder.
            encoded["names"] = jnp.where(context["known_names"][:, None], encoded["names"], 0)
        elif key is not None and encoding.lexical is not None:
            # A class whose vector is hidden teaches the head to trust the words that its name
            # shares with a text.
            shown = jax.random.bernoulli(jax.random.fold_in(key, 1), 1 - HIDDEN, (way, 1))
            encoded["names"] = jnp.where(shown, encoded["names"], 0)
        if encoding.lexical is not None:
            encoded["lexical"] = encoding.lexical[:-way]
            encoded["lexical_names"] = encoding.lexical[-way:]
        return encoded

    def predict(params: Params, encoded: Any, batch: Batch, context: Any) -> dict[str, Array]:
        del batch
        given = encoded["vector"], encoded["names"], context["has_names"]
        if "lexical" in encoded:
            given = *given, (encoded["lexical"], encoded["lexical_names"])
        logits = use_head(model, params, NAME, "__call__", *given)
        return {"logits": logits}

    def loss(params: Params, encoded: Any, batch: Batch, context: Any) -> tuple[Array, Metrics]:
        logits = predict(params, encoded, batch, context)["logits"]
        return classification_loss(logits, batch["label"], batch["mask"])

    def names(encoded: Any, context: Any) -> tuple[Array, Array, Batch]:
        lexical = {"lexical": encoded["lexical_names"]} if "lexical_names" in encoded else {}
        features = features_of({"vector": encoded["names"], **lexical})
        return features, context["has_names"], context["names"]

    return problem_of(
        model, NAME, encode, loss, predict, score_classes, way, pictures=True, names=names
    )


def categories_of(products: Iterable[Product]) -> tuple[str, ...]:
    """Return the categories of products, in the order in which training and serving number them."""
    return tuple(sorted({str(one.category) for one in products if one.category is not None}))


def _labelled(domain: Domain, reading: Reading, picked: Sequence[Product] | None) -> Labelled:
    if picked is None:
        examples = distinct_products(domain, pictures=reading.images)
        categories = categories_of(examples)
    else:
        examples, categories = picked, categories_of((*domain.products, *picked))
    labels = np.array([categories.index(str(one.category)) for one in examples], int)
    return Labelled(examples, labels, categories)


def _rows(products: Sequence[Product], reading: Reading, where: str) -> Table:
    del where
    return product_rows(products, reading.reader, reading.lengths.text, reading.images)


def _table(
    parts: Mapping[str, Labelled],
    reading: Reading,
    always: Mapping[str, Sequence[str]],
    scored: bool,
) -> Table:
    """Return `labelled_table`'s fields, and those of the classes.

    `names` [domains, classes, ...] are the text fields of the class names, `has_names` bool
    [domains, classes] marks the classes that exist, `known_names` those whose names training has
    seen, and `priority` those that every episode contains.
    """
    del scored
    names, known, priority = [], [], []
    for domain, part in parts.items():
        forced = always.get(domain, ())
        unknown = sorted(set(forced) - set(part.classes))
        if unknown:
            raise CatalogueError(
                f"domain {domain}: no product of category {unknown[0]!r}, which every episode "
                f"should contain; its categories are {', '.join(part.classes)}"
            )
        names.append(_names(part.classes, reading))
        known.append(_known(part.classes, reading))
        priority.append(np.array([category in forced for category in part.classes]))
    rows = [_rows(part.examples, reading, domain) for domain, part in parts.items()]
    return {
        **labelled_table(rows, [part.labels for part in parts.values()]),
        "names": stack_rows(names),
        "has_names": stack([np.ones(len(part.classes), bool) for part in parts.values()]),
        "known_names": stack(known),
        "priority": stack(priority),
    }


def _names(categories: Sequence[str], reading: Reading) -> Table:
    return reading.reader.rows(categories, reading.lengths.name)


def _known(categories: Sequence[str], reading: Reading) -> np.ndarray:
    return np.array([category in reading.known_classes for category in categories], bool)


def _context(categories: tuple[str, ...], reading: Reading) -> dict[str, Any]:
    return {
        "names": _names(categories, reading),
        "has_names": np.ones(len(categories), bool),
        "known_names": _known(categories, reading),
    }


def _problem(model: GuideModel, reading: Reading, classes: int) -> Problem:
    del reading
    return classification(model.clone(way=max(classes, model.way)), classes)


def _answers(
    outputs: Mapping[str, np.ndarray],
    products: Sequence[Product],
    reading: Reading,
    categories: tuple[str, ...],
) -> list[Category]:
    del products, reading
    return [
        Category(
            categories[int(chance.argmax())],
            dict(zip(categories, map(float, chance), strict=True)),
        )
        for chance in softmax(outputs["logits"])
    ]


def _baselines(
    sources: Sequence[Domain],
    domain: Domain,
    reading: Reading,
    always: Mapping[str, Sequence[str]],
    cells: Mapping[int, Any],
) -> Iterator[Outcome]:
    products, labels, categories = _labelled(domain, reading, None)
    taught = [product_text(product) for one in sources for product in one.products]
    texts = [product_text(product) for product in products]
    tfidf, ngrams = baselines.fit_tfidf(taught), baselines.fit_ngrams(taught)
    features, named = tfidf.transform(texts), tfidf.transform(categories)
    grams, of_names = ngrams.transform(texts), ngrams.transform(categories)
    unseen = np.isin(np.array(categories)[labels], always.get(domain.name, ()))

    for shots, cell in cells.items():
        query, classes = queried_rows(cell["query"]), cell["context"]["classes"]
        support = queried_rows(cell["support"]) if shots else None
        outcomes = {
            "majority": baselines.majority(labels, query, classes),
            "nearest by n-grams": baselines.nearest_class(
                grams, of_names, labels, query, classes, support
            ),
        }
        if support is not None:
            outcomes["tf-idf few-shot"] = baselines.few_shot(features, labels, support, query)
        else:
            outcomes["class names"] = baselines.nearest_class(
                features, named, labels, query, classes
            )
        for name, raw in outcomes.items():
            yield name, shots, raw | {"unseen": unseen[raw["id"]]}


LABELLING = Labelling(
    name=NAME,
    of_domain=_labelled,
    rows=_rows,
    problem=_problem,
    answers=_answers,
    table=_table,
    context=_context,
    start=with_slots,
    unlabelled=lambda domain: domain.products,
    described=lambda name: f"category {name!r}",
    lacking="no product has a category, so there are none to tell apart; add some",
    is_ordered=False,
    answers_untrained=True,
)

LABELS = Labels(
    distinct=distinct_products,
    label=lambda product: str(product.category),
    is_bare=lambda product: product.category is None,
    answer=lambda answer: answer.category,
    probability=lambda answer: answer.probabilities[answer.category],
    text=product_text,
)

CLASSIFICATION = labelled_task(
    LABELLING,
    LABELS,
    title="Classification",
    summary="Which category a product belongs to.",
    part="products",
    needs="products with a category",
    asks=Product,
    has_examples=lambda domain: any(p.category is not None for p in domain.products),
    columns=("category", "probability"),
    cells=lambda answer: [(answer.category, LABELS.probability(answer))],
    head=lambda encoder, way: ClassificationHead(way, encoder.dtype),
    scoring=Scoring(
        NAME,
        arrays=("predicted", "target"),
        measures=agreement,
        metrics=("accuracy", "accuracy_unseen", "macro_f1"),
        once=None,
    ),
    baselines=_baselines,
    checked=checked_example,
    picked=partial(labelled.picked, "products", "category", "category"),
)
