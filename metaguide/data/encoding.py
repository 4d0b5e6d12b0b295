"""From domains to arrays: every kind of task as one table, padded over its domains.

A table is a dict of arrays whose leading axis is the domain, so that a domain is a number which
a compiled program may draw. It lives on the device and is an argument of every step.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metaguide.data.catalogue import IMAGE_SIDE, CatalogueError, Domain, Product, Question
from metaguide.data.tokenizer import PAD, Encoded, Tokenizer

Table = dict[str, Any]


class Lengths(NamedTuple):
    """Tokens kept of each kind of text.

    Attributes:
        text: of a product or a review.
        pair: of a question with its passage.
        name: of a class name.
    """

    text: int
    pair: int
    name: int


def product_text(product: Product) -> str:
    """Return what is read of a product: title, description, attributes that they do not name."""
    prose = " ".join(part for part in (product.title, product.description) if part)
    others = (f"{k} {v}" for k, v in product.attributes.items() if v.lower() not in prose.lower())
    return " ".join((prose, *others))


def unlabelled(domains: Sequence[Domain], tokenizer: Tokenizer, length: int) -> Table:
    """Return everything that self-supervision may read of `domains`.

    Args:
        domains: source domains.
        tokenizer: trained on the same.
        length: tokens kept of each text.

    Returns:
        {"text": {"tokens", "words"}: int32 [texts, length] each, "image": {"image"}: uint8
        [pictures, 32, 32, 3], "pair": {"tokens", "image"}, rows of products that have both}; a
        part of which there is nothing is left out.
    """
    products = [product for domain in domains for product in domain.products]
    texts = [product_text(product) for product in products]
    others = [review.text for domain in domains for review in domain.reviews]
    others += [question.text for domain in domains for question in domain.questions]
    # A passage may be asked about many times; it is read once.
    known = set(texts)
    texts += dict.fromkeys(text for text in others if text not in known)
    encoded = tokenizer.encode(texts, length)
    table: Table = {"text": {"tokens": encoded.tokens, "words": encoded.words}}
    pictured = [row for row, product in enumerate(products) if product.image is not None]
    if pictured:
        images = np.stack([products[row].image for row in pictured])  # pyright: ignore
        table["image"] = {"image": images}
        table["pair"] = {"tokens": encoded.tokens[pictured], "image": images}
    return table


def product_rows(products: Sequence[Product], tokenizer: Tokenizer, length: int) -> Table:
    """Return {"tokens"} of products, and {"image", "has_image"} where any of them has a picture."""
    rows: Table = {"tokens": tokenizer.encode([product_text(p) for p in products], length).tokens}
    rows["has_image"] = np.array([p.image is not None for p in products])
    blank = np.zeros((IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
    rows["image"] = np.stack([blank if p.image is None else p.image for p in products])
    return rows


def classification_table(
    domains: Sequence[Domain],
    tokenizer: Tokenizer,
    lengths: Lengths,
    images: bool,
    always: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """Return the labelled table of products and their categories.

    Args:
        domains: each with at least one categorised product.
        tokenizer: what reads the texts.
        lengths: tokens kept.
        images: whether to carry pictures.
        always: by domain, categories that every episode of it contains.

    Returns:
        `labelled_table`'s fields, rows of `tokens` (and `image`, `has_image`), and the class names
        as `names` int32 [domains, classes, lengths.name].
    """
    rows, labels, names, priority = [], [], [], []
    for domain in domains:
        kept = [product for product in domain.products if product.category is not None]
        categories = sorted({str(product.category) for product in kept})
        forced = (always or {}).get(domain.name, ())
        unknown = sorted(set(forced) - set(categories))
        if unknown:
            raise CatalogueError(
                f"domain {domain.name}: no product of category {unknown[0]!r}, which every episode "
                f"should contain; its categories are {', '.join(categories)}"
            )
        table = product_rows(kept, tokenizer, lengths.text)
        rows.append(table if images else {"tokens": table["tokens"]})
        labels.append(np.array([categories.index(str(product.category)) for product in kept]))
        names.append(tokenizer.encode(categories, lengths.name).tokens)
        priority.append(np.array([category in forced for category in categories]))
    return {
        **labelled_table(rows, labels),
        "names": _stack(names),
        "priority": _stack(priority),
    }


def sentiment_table(domains: Sequence[Domain], tokenizer: Tokenizer, lengths: Lengths) -> Table:
    """Return the labelled table of reviews: 0 negative, 1 positive; three stars have no class.

    Rows hold `tokens` and `stars` float32, 0 where a review has none.
    """
    rows, labels = [], []
    for domain in domains:
        kept = [review for review in domain.reviews if review.label is not None]
        rows.append(
            {
                "tokens": tokenizer.encode([review.text for review in kept], lengths.text).tokens,
                "stars": np.array([review.stars or 0.0 for review in kept], np.float32),
            }
        )
        labels.append(np.array([review.label for review in kept]))
    return labelled_table(rows, labels, classes=2)


def questions_table(domains: Sequence[Domain], tokenizer: Tokenizer, lengths: Lengths) -> Table:
    """Return the table of questions: one class, rows of `tokens` and the answer's token span.

    `start` and `end` (int32, `end` included) are positions in `tokens`; both are 0, the [CLS]
    token, where the passage has no answer.

    Raises:
        CatalogueError: an answer lies beyond `lengths.pair` tokens.
    """
    rows = [
        question_rows(domain.questions, tokenizer, lengths.pair, domain.name) for domain in domains
    ]
    return labelled_table(rows, [np.zeros(len(domain.questions), int) for domain in domains])


def question_rows(
    questions: Sequence[Question], tokenizer: Tokenizer, length: int, where: str
) -> Table:
    """Return {"tokens", "start", "end"} of questions; see `questions_table`."""
    encoded = tokenizer.encode_pairs(
        [question.question for question in questions],
        [question.text for question in questions],
        length,
    )
    spans = np.zeros((len(questions), 2), np.int32)
    for row, question in enumerate(questions):
        if question.answer is not None:
            spans[row] = _token_span(encoded, row, question, where)
    return {"tokens": encoded.tokens, "start": spans[:, 0], "end": spans[:, 1]}


def recommendation_table(
    domains: Sequence[Domain], tokenizer: Tokenizer, lengths: Lengths, images: bool
) -> Table:
    """Return the table of users: what they took, in the order of time, and all products.

    A product that a user takes again counts once, at its first time. Users with fewer than two
    products are left out: there is nothing to ask about them.

    Returns:
        {"products": rows [domains, products, ...], "catalogue": int32 [domains], "items": int32
        [domains, users, longest], "taken": int32 [domains, users], "users": int32 [domains]}.
    """
    products, items, taken = [], [], []
    for domain in domains:
        index = {product.id: row for row, product in enumerate(domain.products)}
        histories: dict[str, list[int]] = {}
        for event in sorted(domain.interactions, key=lambda event: event.time):
            history = histories.setdefault(event.user, [])
            if index[event.product] not in history:
                history.append(index[event.product])
        kept = [histories[user] for user in sorted(histories) if len(histories[user]) > 1]
        longest = max(map(len, kept), default=0)
        padded = [history + [0] * (longest - len(history)) for history in kept]
        items.append(np.array(padded, np.int32).reshape(len(kept), longest))
        taken.append(np.array([len(history) for history in kept], np.int32))
        rows = product_rows(domain.products, tokenizer, lengths.text)
        products.append(rows if images else {"tokens": rows["tokens"]})
    return {
        "products": _stack_rows(products),
        "catalogue": np.array([len(domain.products) for domain in domains], np.int32),
        "items": _stack(items),
        "taken": _stack(taken),
        "users": np.array([len(counts) for counts in taken], np.int32),
    }


def labelled_table(
    rows: Sequence[Mapping[str, np.ndarray]],
    labels: Sequence[np.ndarray],
    classes: int | None = None,
) -> Table:
    """Return examples with classes as arrays, padded over domains.

    Args:
        rows: per domain, fields with a leading axis of examples.
        labels: per domain, int [examples], counted from 0.
        classes: number of classes; by default the largest that occurs.

    Returns:
        {"rows": fields [domains, examples, ...], "members": int32 [domains, classes, largest], the
        rows of each class, "count": int32 [domains, classes]}.
    """
    if classes is None:
        classes = 1 + max(int(label.max(initial=0)) for label in labels)
    members = [[np.flatnonzero(label == c) for c in range(classes)] for label in labels]
    largest = max(len(of_class) for domain in members for of_class in domain)
    padded = np.zeros((len(rows), classes, largest), np.int32)
    for d, domain in enumerate(members):
        for c, of_class in enumerate(domain):
            padded[d, c, : len(of_class)] = of_class
    return {
        "rows": _stack_rows(rows),
        "members": padded,
        "count": np.array([[len(c) for c in domain] for domain in members], np.int32),
    }


def _stack_rows(rows: Sequence[Mapping[str, np.ndarray]]) -> Table:
    """Stack the rows of several domains, token rows no longer than the longest text among them.

    Padding costs as much as text does, and few texts are as long as may be.
    """
    stacked = {name: _stack([table[name] for table in rows]) for name in rows[0]}
    used = np.flatnonzero((stacked["tokens"] != PAD).any(axis=(0, 1)))
    stacked["tokens"] = stacked["tokens"][..., : 1 + used.max(initial=0)]
    return stacked


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays of different sizes, padding each axis with zeros at its end."""
    shape = tuple(np.max([array.shape for array in arrays], axis=0))
    out = np.zeros((len(arrays), *shape), arrays[0].dtype)
    for index, array in enumerate(arrays):
        out[(index, *(slice(size) for size in array.shape))] = array
    return out


def _token_span(encoded: Encoded, row: int, question: Question, where: str) -> tuple[int, int]:
    assert question.answer is not None
    first, past = question.answer
    # White space is part of no token.
    past = first + len(question.text[first:past].rstrip())
    begins, ends = encoded.offsets[row, :, 0], encoded.offsets[row, :, 1]
    inside = np.flatnonzero((begins >= 0) & (ends > first) & (begins < past))
    if not len(inside) or ends[inside[-1]] < past:
        length = encoded.tokens.shape[1]
        raise CatalogueError(
            f"domain {where}, question {question.id!r}: its answer ends at character {past}, "
            f"beyond the {length} tokens kept of question and passage; raise config.text.pair"
        )
    return int(inside[0]), int(inside[-1])


KINDS: Mapping[str, Callable[[Domain], bool]] = {
    "classification": lambda domain: any(p.category is not None for p in domain.products),
    "sentiment": lambda domain: any(review.label is not None for review in domain.reviews),
    "questions": lambda domain: bool(domain.questions),
    "recommendation": lambda domain: bool(domain.interactions),
}
"""The four kinds of task, each with the test of whether a domain has what it needs."""
