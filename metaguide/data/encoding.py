"""From domains to arrays: every kind of task as one table, padded over its domains.

A table is a dict of arrays whose leading axis is the domain, so that a domain is a number which
a compiled program may draw. It lives on the device and is an argument of every step.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metaguide.data.catalogue import IMAGE_SIDE, CatalogueError, Domain, Product, Question
from metaguide.data.histories import histories
from metaguide.data.repeats import distinct_products, distinct_questions, distinct_reviews
from metaguide.data.texts import product_text
from metaguide.data.tokenizer import PAD, Encoded, Tokenizer
from metaguide.scoring import answer_scores

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
    """Return the labelled table of products and their categories, each content once.

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
        kept = distinct_products(domain, pictures=images)
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

    A text that several reviews have is there once.

    Rows hold `tokens` and `stars` float32, 0 where a review has none.
    """
    rows, labels = [], []
    for domain in domains:
        kept = distinct_reviews(domain)
        rows.append(
            {
                "tokens": tokenizer.encode([review.text for review in kept], lengths.text).tokens,
                "stars": np.array([review.stars or 0.0 for review in kept], np.float32),
            }
        )
        labels.append(np.array([review.label for review in kept]))
    return labelled_table(rows, labels, classes=2)


def questions_table(
    domains: Sequence[Domain], tokenizer: Tokenizer, lengths: Lengths, longest: int | None = None
) -> Table:
    """Return the table of questions: one class, rows of `tokens` and the answer's token span.

    Rows are those of `question_rows` for `question_examples`. Every row has as many windows as the
    longest passage of all domains needs; where one will do, the axis of windows is left out.

    Args:
        domains: each with at least one question.
        tokenizer: what reads the texts.
        lengths: tokens kept.
        longest: most tokens of an answer, to carry the scores that `judge` looks up.

    Raises:
        CatalogueError: an answer is blank.
    """
    kept = [question_examples(domain, tokenizer, lengths.pair) for domain in domains]
    rows = [
        question_rows(questions, tokenizer, lengths.pair, domain.name, longest)
        for questions, domain in zip(kept, domains, strict=True)
    ]
    if any(table["start"].ndim > 1 for table in rows):
        rows = [
            {
                name: leaf if table["start"].ndim > 1 else leaf[:, None]
                for name, leaf in table.items()
            }
            for table in rows
        ]
    return labelled_table(rows, [np.zeros(len(questions), int) for questions in kept])


def question_examples(domain: Domain, tokenizer: Tokenizer, length: int) -> list[Question]:
    """Return the questions of a domain that can be learned from and asked, each once.

    An answer that no window of `length` tokens is sure to hold whole cannot be; such questions are
    left out with a warning.
    """
    questions = distinct_questions(domain)
    encoded = _pairs(questions, tokenizer, length)
    kept = [
        question
        for row, question in enumerate(questions)
        if question.answer is None or _token_spans(encoded, row, question, domain.name).any()
    ]
    if len(kept) < len(questions):
        ids = {question.id for question in questions} - {question.id for question in kept}
        warnings.warn(
            f"domain {domain.name}: {len(questions) - len(kept)} of {len(questions)} questions are "
            f"left out, their answers being too long for windows of {length} tokens, such as that "
            f"of {min(ids)!r}; mark shorter answers",
            stacklevel=2,
        )
    return kept


def question_rows(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    length: int,
    where: str,
    longest: int | None = None,
) -> Table:
    """Return questions as they are read: beside their passage, or windows of it.

    Args:
        questions: to encode.
        tokenizer: what reads the texts.
        length: tokens of a question with its passage, or a window of it.
        where: name of the domain, for errors.
        longest: most tokens of an answer, to have `em` and `f1` too.

    Returns:
        {"tokens": int32 [questions, windows, length], "start", "end": int32 [questions, windows],
        "em": bool, "f1": float32 [questions, windows, length, longest]}. `start` and `end`, the
        last token, are positions in the window's tokens, both 0, the [CLS] token, where the window
        does not hold the whole answer. `em` and `f1` are the scores of what is said with the tokens
        from a position on, 1 to `longest` of them; see `metaguide.scoring`. The axis of windows is
        left out where every passage fits into one.

    Raises:
        CatalogueError: an answer is blank.
    """
    encoded = _pairs(questions, tokenizer, length)
    spans = np.zeros((*encoded.tokens.shape[:2], 2), np.int32)
    for row, question in enumerate(questions):
        if question.answer is not None:
            spans[row] = _token_spans(encoded, row, question, where)
    rows: Table = {"tokens": encoded.tokens, "start": spans[..., 0], "end": spans[..., 1]}
    if longest is not None:
        rows["em"] = np.zeros((*encoded.tokens.shape, longest), bool)
        rows["f1"] = np.zeros((*encoded.tokens.shape, longest), np.float32)
        for row, question in enumerate(questions):
            if question.answer is not None:
                _fill_scores(rows["em"][row], rows["f1"][row], encoded.offsets[row], question)
    if encoded.tokens.shape[1] == 1:
        rows = {name: leaf[:, 0] for name, leaf in rows.items()}
    return rows


def recommendation_table(
    domains: Sequence[Domain], tokenizer: Tokenizer, lengths: Lengths, images: bool
) -> Table:
    """Return the table of users: what they took, in the order of time, and all products.

    A user's history is that of `metaguide.data.histories`. Users with fewer than two products
    are left out: there is nothing to ask about them.

    Returns:
        {"products": rows [domains, products, ...], "catalogue": int32 [domains], "items": int32
        [domains, users, longest], "taken": int32 [domains, users], "users": int32 [domains]}.
    """
    products, items, taken = [], [], []
    for domain in domains:
        index = {product.id: row for row, product in enumerate(domain.products)}
        every = histories(domain.interactions)
        kept = [[index[p] for p in user.products] for user in every if len(user.products) > 1]
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
    used = np.flatnonzero(
        (stacked["tokens"] != PAD).any(axis=tuple(range(stacked["tokens"].ndim - 1)))
    )
    stacked["tokens"] = stacked["tokens"][..., : 1 + used.max(initial=0)]
    return stacked


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays of different sizes, padding each axis with zeros at its end."""
    shape = tuple(np.max([array.shape for array in arrays], axis=0))
    out = np.zeros((len(arrays), *shape), arrays[0].dtype)
    for index, array in enumerate(arrays):
        out[(index, *(slice(size) for size in array.shape))] = array
    return out


def _pairs(questions: Sequence[Question], tokenizer: Tokenizer, length: int) -> Encoded:
    return tokenizer.encode_pairs(
        [question.question for question in questions],
        [question.text for question in questions],
        length,
    )


def _token_spans(encoded: Encoded, row: int, question: Question, where: str) -> np.ndarray:
    """The answer's first and last token in each window, (0, 0) in one that may not hold it all."""
    assert question.answer is not None
    first, past = question.answer
    begins, ends = encoded.offsets[row, ..., 0], encoded.offsets[row, ..., 1]
    inside = (begins >= 0) & (ends > first) & (begins < past)
    if not inside.any():
        raise CatalogueError(
            f"domain {where}, question {question.id!r}: its answer, characters {first} to {past}, "
            "is blank; give the characters of the answer, or None for no answer"
        )
    spans = np.zeros((len(inside), 2), np.int32)
    windows = int((encoded.tokens[row, :, 0] != PAD).sum())
    for window in np.flatnonzero(inside.any(1)):
        answer, text = np.flatnonzero(inside[window]), np.flatnonzero(begins[window] >= 0)
        # At the edge between two windows, more of the answer may stand in the other one.
        cut_before = window > 0 and answer[0] == text[0]
        cut_behind = window + 1 < windows and answer[-1] == text[-1]
        if not (cut_before or cut_behind):
            spans[window] = answer[0], answer[-1]
    return spans


def _fill_scores(em: np.ndarray, f1: np.ndarray, offsets: np.ndarray, question: Question) -> None:
    """Fill in the scores [windows, length, longest] of every answer that can be said."""
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for window, first in zip(*np.nonzero(offsets[..., 0] >= 0), strict=True):
        begin = int(offsets[window, first, 0])
        for more, (_, end) in enumerate(offsets[window, first : first + em.shape[-1]].tolist()):
            if end < 0:
                break
            if (begin, end) not in found:
                found[begin, end] = answer_scores(question.text[begin:end], question.golds)
            em[window, first, more], f1[window, first, more] = found[begin, end]


KINDS: Mapping[str, Callable[[Domain], bool]] = {
    "classification": lambda domain: any(p.category is not None for p in domain.products),
    "sentiment": lambda domain: any(review.label is not None for review in domain.reviews),
    "questions": lambda domain: bool(domain.questions),
    "recommendation": lambda domain: bool(domain.interactions),
}
"""The four kinds of task, each with the test of whether a domain has what it needs."""
