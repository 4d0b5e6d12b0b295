"""Removal of repeated examples: a query whose text is also in the support tests nothing.

Each function keeps the first of a domain's examples with the same content, and warns how many it
leaves out.
"""

import hashlib
import re
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from scipy import sparse

from metaguide.data.catalogue import Domain, Product, Question, Review
from metaguide.data.texts import normalised, product_text

Example = TypeVar("Example")

_WITHIN_NUMBER = re.compile(r"[.,:/-](?=\d)(?<=\d.)")
"""A mark between two digits; looking for the rarer mark first takes a third of the time."""

_SHINGLE = 4
"""Length in characters of the pieces by which near-duplicates are found (Broder 1997)."""


def without_repeats(domain: Domain, near: float = 1.0, pictures: bool = True) -> Domain:
    """Return a domain in which no text is an example twice.

    Args:
        domain: any domain.
        near: texts count as the same if their share of common four-character pieces is at least
            this, in (0, 1]; 1 matches only texts that are the same up to case, width, white space
            and punctuation.
        pictures: whether products with the same text but different pictures are different examples.

    Returns:
        The domain without repeated reviews and questions. A repeated product stays in the catalogue
        without its category, so that it is no longer an example.

    Raises:
        ValueError: `near` is out of its range.
    """
    kept = {product.id for product in distinct_products(domain, near, pictures)}
    reviews = {review.id for review in distinct_reviews(domain, near)}
    return replace(
        domain,
        products=tuple(
            product if product.id in kept else replace(product, category=None)
            for product in domain.products
        ),
        reviews=tuple(r for r in domain.reviews if r.label is None or r.id in reviews),
        questions=tuple(distinct_questions(domain, near)),
    )


def distinct_products(domain: Domain, near: float = 1.0, pictures: bool = True) -> list[Product]:
    """Return the products with a category, each text (with each picture) once."""
    products = [product for product in domain.products if product.category is not None]
    texts = [(product_text(product),) for product in products]
    seen = [
        product.image.tobytes() if pictures and product.image is not None else b""
        for product in products
    ]
    return _distinct(products, texts, seen, near, f"domain {domain.name}, classification")


def distinct_reviews(domain: Domain, near: float = 1.0) -> list[Review]:
    """Return the reviews with a sentiment, each text once."""
    reviews = [review for review in domain.reviews if review.label is not None]
    texts = [(review.text,) for review in reviews]
    return _distinct(reviews, texts, [()] * len(texts), near, f"domain {domain.name}, sentiment")


def distinct_questions(domain: Domain, near: float = 1.0) -> list[Question]:
    """Return the questions, each on each text once."""
    texts = [(question.question, question.text) for question in domain.questions]
    nothing = [()] * len(texts)
    return _distinct(domain.questions, texts, nothing, near, f"domain {domain.name}, questions")


def _content(text: str) -> str:
    # A mark within a number changes the number, so it becomes "|", which is kept as a symbol.
    return normalised(_WITHIN_NUMBER.sub("|", text)) or text.strip()


def _distinct(
    examples: Sequence[Example],
    texts: Sequence[tuple[str, ...]],
    others: Sequence[Hashable],
    near: float,
    where: str,
) -> list[Example]:
    """Return the first of each group of examples with the same texts and other content."""
    if not 0 < near <= 1:
        raise ValueError(f"near is {near}; give a share of common pieces above 0, at most 1")
    first: dict[Hashable, int] = {}
    for row, (parts, other) in enumerate(zip(texts, others, strict=True)):
        # A million texts are known by their hashes, so that they are not held twice.
        contents = "\0".join(map(_content, parts)).encode()
        first.setdefault((hashlib.blake2b(contents, digest_size=16).digest(), other), row)
    rows = list(first.values())
    if near < 1 and rows:
        kept = {row: tuple(map(_content, texts[row])) for row in rows}
        rows = _apart(kept, others, near)
    if len(rows) < len(examples):
        warnings.warn(
            f"{where}: {len(examples) - len(rows)} of {len(examples)} examples are left out, since "
            "they repeat the text of another one",
            stacklevel=3,
        )
    return [examples[row] for row in rows]


def _apart(
    contents: Mapping[int, tuple[str, ...]], others: Sequence[Hashable], near: float
) -> list[int]:
    """Return the rows that are not near, in every part, to a row kept before them."""
    from sklearn.feature_extraction.text import CountVectorizer  # takes seconds to import

    pieces: list[Any] = []
    rows = list(contents)
    for part in range(len(contents[rows[0]])):
        counter = CountVectorizer(
            analyzer="char", ngram_range=(_SHINGLE, _SHINGLE), binary=True, lowercase=False
        )
        padded = [contents[row][part].ljust(_SHINGLE) for row in rows]
        pieces.append(sparse.csr_array(counter.fit_transform(padded)))
    sizes = [np.asarray(matrix.sum(axis=1)).ravel() for matrix in pieces]
    kept: list[int] = []
    for place, row in enumerate(rows):
        close = np.array([others[rows[before]] == others[row] for before in kept], bool)
        for matrix, size in zip(pieces, sizes, strict=True):
            if close.any():
                common = (matrix @ matrix[[place]].T).toarray().ravel()[kept]
                close &= common >= near * (size[kept] + size[place] - common)
        if not close.any():
            kept.append(place)
    return [rows[place] for place in kept]
