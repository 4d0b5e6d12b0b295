"""What is read of a product, and when two texts are the same."""

import re
import unicodedata

from metaguide.data.catalogue import Product
from metaguide.scoring import CHARACTER


def product_text(product: Product) -> str:
    """Return what is read of a product: title, description, attributes that they do not name."""
    prose = " ".join(part for part in (product.title, product.description) if part)
    others = (f"{k} {v}" for k, v in product.attributes.items() if not _names(prose, k, v))
    return " ".join((prose, *others))


def _names(prose: str, key: str, value: str) -> bool:
    """Whether the prose has the value as whole words; of a bare number, the key as well."""
    prose, key, value = (
        " ".join(unicodedata.normalize("NFKC", text).lower().split())
        for text in (prose, key, value)
    )
    keyed = any(map(str.isalpha, value)) or _has_words(prose, key)
    return keyed and _has_words(prose, value)


def _has_words(prose: str, words: str) -> bool:
    matches = re.finditer(f"(?={re.escape(words)})", prose) if words else ()
    begins = [match.start() for match in matches]
    return any(
        not _goes_on(words[::-1], prose[:begin][::-1])
        and not _goes_on(words, prose[begin + len(words) :])
        for begin in begins
    )


def _goes_on(words: str, beside: str) -> bool:
    """Whether what stands behind `words` makes another word of it: "128" of "12", "red-hot"."""
    joint = re.match(r"[-.,'’/]?\w", beside)
    if joint is None or not words[-1].isalnum():
        return False
    if CHARACTER.match(words[-1]) or CHARACTER.match(joint.group()[-1]):
        # No blanks stand between Chinese words: a single character may be part of any.
        return len(words) == 1 and len(joint.group()) == 1 and bool(CHARACTER.match(joint.group()))
    return True


def normalised(text: str) -> str:
    """The text in NFKC and lower case, without white space, punctuation and control characters."""
    folded = unicodedata.normalize("NFKC", text).lower()
    # P: punctuation, Z: separators, C: controls, which tabs, newlines and byte order marks are.
    return "".join(c for c in folded if unicodedata.category(c)[0] not in "PZC")
