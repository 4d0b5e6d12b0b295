"""From domains to arrays: building blocks of all tasks' tables, padded over domains.

A table is a dict of arrays whose leading axis is the domain, so that a domain is a number that a
compiled program can draw. It lives on the device and is an argument of every step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from metaguide.data.catalogue import IMAGE_SIDE, Domain, Product
from metaguide.data.ngrams import has_all_words, hashed_ngrams
from metaguide.data.texts import product_text
from metaguide.data.tokenizer import PAD, TextTokenizer

Table = dict[str, Any]


class Lengths(NamedTuple):
    """Number of tokens kept of each kind of text.

    Attributes:
        text: tokens of a product or a review.
        pair: tokens of a question with its passage.
        name: tokens of a class name.
    """

    text: int
    pair: int
    name: int


def unlabelled(domains: Sequence[Domain], tokenizer: TextTokenizer | None, length: int) -> Table:
    """Return everything that self-supervision may read of `domains`.

    Args:
        domains: source domains.
        tokenizer: a tokenizer trained on the same domains; None if texts are not read.
        length: number of tokens kept of each text.

    Returns:
        {"text": {"tokens", "words"}: int32 [texts, length] each, "image": {"image"}: uint8
        [pictures, 32, 32, 3], "pair": {"tokens", "image"}: rows of products that have both}; empty
        parts are left out.
    """
    products = [product for domain in domains for product in domain.products]
    texts = [product_text(product) for product in products]
    others = [review.text for domain in domains for review in domain.reviews]
    others += [question.text for domain in domains for question in domain.questions]
    # Many questions may share a passage; it is read once.
    known = set(texts)
    texts += dict.fromkeys(text for text in others if text not in known)
    table: Table = {}
    encoded = None if tokenizer is None else tokenizer.encode(texts, length)
    if encoded is not None:
        table["text"] = {"tokens": encoded.tokens, "words": encoded.words}
    pictured = [row for row, product in enumerate(products) if product.image is not None]
    if pictured:
        images = np.stack([products[row].image for row in pictured])  # pyright: ignore
        table["image"] = {"image": images}
        if encoded is not None:
            table["pair"] = {"tokens": encoded.tokens[pictured], "image": images}
    return table


@dataclass(frozen=True)
class TextReader:
    """A reader that turns texts into the `TEXT_FIELDS` that an encoder reads.

    Attributes:
        tokenizer: the tokenizer; None if tokens are not read.
        buckets: number of buckets of hashed n-grams; 0 if n-grams are not read.
        vectors: texts -> float32 [texts, width] of a pretrained encoder; None if there is none.
        ends: texts -> bool [texts], whether that encoder reads them to their end.
    """

    tokenizer: TextTokenizer | None
    buckets: int = 0
    vectors: Callable[[Sequence[str]], np.ndarray] | None = None
    ends: Callable[[Sequence[str]], np.ndarray] | None = None

    def rows(self, texts: Sequence[str], length: int) -> Table:
        """Return the fields of texts.

        Args:
            texts: any texts.
            length: number of tokens kept of each; of n-grams and for vectors other limits hold.

        Returns:
            {"tokens": int32 [texts, length], "grams": int32 [texts, ngrams], "vector": float16
            [texts, width]}; fields that are not read are left out.
        """
        rows: Table = {}
        if self.tokenizer is not None:
            rows["tokens"] = self.tokenizer.encode(texts, length).tokens
        if self.buckets:
            rows["grams"] = hashed_ngrams(texts)
        if self.vectors is not None:
            rows["vector"] = self.vectors(texts).astype(np.float16)
        return rows

    def reads_to_the_end(self, texts: Sequence[str], length: int) -> Bool[np.ndarray, " texts"]:
        """Return of which texts no field leaves out the end; the arguments are those of `rows`."""
        are_read = has_all_words(texts) if self.buckets else np.ones(len(texts), bool)
        if self.ends is not None:
            are_read &= self.ends(texts)
        if self.tokenizer is not None:
            fewer, more = (
                (self.tokenizer.encode(texts, most).words >= 0).sum(-1)
                for most in (length, length + 1)
            )
            are_read &= fewer == more
        return are_read


def product_rows(
    products: Sequence[Product], reader: TextReader, length: int, images: bool = True
) -> Table:
    """Return the text fields of products, and with `images` their {"image", "has_image"}."""
    rows = reader.rows([product_text(product) for product in products], length)
    if not images:
        return rows
    rows["has_image"] = np.array([p.image is not None for p in products])
    blank = np.zeros((IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
    rows["image"] = np.stack([blank if p.image is None else p.image for p in products])
    return rows


def labelled_table(
    rows: Sequence[Mapping[str, np.ndarray]],
    labels: Sequence[np.ndarray],
    classes: int | None = None,
) -> Table:
    """Return examples with classes as arrays, padded over domains.

    Args:
        rows: for each domain, fields with a leading axis of examples.
        labels: for each domain, int [examples], counted from 0.
        classes: number of classes; by default 1 + the largest label.

    Returns:
        {"rows": fields [domains, examples, ...], "members": int32 [domains, classes, largest] (the
        rows of each class), "count": int32 [domains, classes]}.

    Raises:
        ValueError: labels are not whole numbers from 0 to `classes` − 1, one for each example.
    """
    if len(rows) != len(labels):
        raise ValueError(f"{len(rows)} domains have rows, and {len(labels)} have labels")
    if classes is None:
        classes = 1 + max(int(np.max(label, initial=0)) for label in labels)
    for number, (fields, label) in enumerate(zip(rows, labels, strict=True)):
        examples = {len(field) for field in fields.values()}
        if np.ndim(label) != 1 or examples != {len(label)}:
            raise ValueError(
                f"domain {number}: labels are {[*np.shape(label)]}, and its fields have "
                f"{', '.join(map(str, sorted(examples)))} examples; give one label for each"
            )
        is_whole = np.issubdtype(label.dtype, np.integer)
        if label.size and not (is_whole and label.min() >= 0 and label.max() < classes):
            raise ValueError(
                f"domain {number}: labels are {label.dtype} from {label.min()} to {label.max()}; "
                f"give whole numbers from 0 to {classes - 1}"
            )
    members = [[np.flatnonzero(label == c) for c in range(classes)] for label in labels]
    largest = max(len(of_class) for domain in members for of_class in domain)
    padded = np.zeros((len(rows), classes, largest), np.int32)
    for d, domain in enumerate(members):
        for c, of_class in enumerate(domain):
            padded[d, c, : len(of_class)] = of_class
    return {
        "rows": stack_rows(rows),
        "members": padded,
        "count": np.array([[len(c) for c in domain] for domain in members], np.int32),
    }


def stack_rows(rows: Sequence[Mapping[str, np.ndarray]]) -> Table:
    """Stack the rows of several domains, with token rows cut to the longest text among them.

    Padding costs as much as text, and few texts reach the maximal length.
    """
    stacked = {name: stack([table[name] for table in rows]) for name in rows[0]}
    if (tokens := stacked.get("tokens")) is not None:
        used = np.flatnonzero((tokens != PAD).any(axis=tuple(range(tokens.ndim - 1))))
        stacked["tokens"] = tokens[..., : 1 + used.max(initial=0)]
    return stacked


def stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays of different sizes, padding each axis with zeros at its end."""
    shape = tuple(np.max([array.shape for array in arrays], axis=0))
    out = np.zeros((len(arrays), *shape), arrays[0].dtype)
    for index, array in enumerate(arrays):
        out[(index, *(slice(size) for size in array.shape))] = array
    return out
