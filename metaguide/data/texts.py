"""The text of a product, when two texts are the same, and warnings of some among many texts."""

import re
import unicodedata
from typing import ClassVar

from metaguide.data.catalogue import Product
from metaguide.scoring import CHARACTER


def product_text(product: Product) -> str:
    """Return a product's text: title, description, and attributes that these do not mention."""
    prose = " ".join(part for part in (product.title, product.description) if part)
    others = (f"{k} {v}" for k, v in product.attributes.items() if not _names(prose, k, v))
    return " ".join((prose, *others))


def _names(prose: str, key: str, value: str) -> bool:
    """Return whether the prose has the value as whole words; for a bare number, also the key."""
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
    """Return whether the text after `words` extends its last word: "128" for "12", "red-hot"."""
    joint = re.match(r"[-.,'’/]?\w", beside)
    if joint is None or not words[-1].isalnum():
        return False
    if CHARACTER.match(words[-1]) or CHARACTER.match(joint.group()[-1]):
        # Chinese words are not separated by blanks: a single character may be part of any word.
        return len(words) == 1 and len(joint.group()) == 1 and bool(CHARACTER.match(joint.group()))
    return True


def normalised(text: str) -> str:
    """Return the text in NFKC and lower case, without white space, punctuation and controls."""
    return unicodedata.normalize("NFKC", text).lower().translate(_KEPT)


class _Kept(dict[int, int | None]):
    """A table for `str.translate` that deletes characters, filled as they occur."""

    def __missing__(self, code: int) -> int | None:
        # P: punctuation, Z: separators, C: controls, including tabs, newlines, byte order marks.
        deleted = unicodedata.category(chr(code))[0] in "PZC"
        return self.setdefault(code, None if deleted else code)


_KEPT = _Kept()


class SomeTexts(UserWarning):
    """Something is the case with some of the texts that were read together.

    Attributes:
        said: what these texts are, which every subclass says; `about` fills its braces.
        count: number of these texts.
        of: number of all texts.
        about: numbers that the sentence names.
    """

    said: ClassVar[str]

    def __init__(self, count: int, of: int, *about: int):
        super().__init__(f"{count} of {of} texts are {self.said.format(*about)}")
        self.count, self.of, self.about = count, of, about
