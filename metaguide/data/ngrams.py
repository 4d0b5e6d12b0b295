"""Hashed n-grams of words and characters, a bag of words that needs no vocabulary; their rarity."""

import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from metaguide.scoring import CHARACTER
from metaguide.types import HASHES

WORD = rf"(?u){CHARACTER.pattern}|[^\W{CHARACTER.pattern[1:-1]}]+"
"""A word of the n-grams: a Chinese or Japanese character, or a run of other letters and digits."""

MOST = 256
"""The most n-grams kept of a text; a longer text keeps those of its beginning."""


def hashed_ngrams(texts: Sequence[str], most: int = MOST) -> Int32[np.ndarray, "texts ngrams"]:
    """Return the distinct n-grams of each text as numbers in [2, `HASHES`), padded with 0.

    Words and pairs of words have even numbers, runs of 2 to 4 characters inside words odd ones.
    N-grams that share a number are not distinguished, which costs little with far more numbers than
    common n-grams (Bojanowski et al. 2017; Weinberger et al. 2009).

    Args:
        texts: any texts; the case and the width of letters are ignored.
        most: the most n-grams kept of a text.

    Returns:
        The numbers, those of words before those of characters, each in the order of the text.

    Raises:
        ValueError: `most` is less than 1.
    """
    if most < 1:
        raise ValueError(f"most is {most}; give at least 1")
    words, _ = _analyzers()
    rows = []
    for text in texts:
        of_words = (2 + 2 * _hash(gram) for gram in words(text))
        of_characters = chain.from_iterable(map(_runs_in, plain(text).split()))
        # Words first: if a text is cut, they say more than parts of words.
        rows.append(list(dict.fromkeys((*of_words, *of_characters)))[:most])
    found = np.zeros((len(rows), max(map(len, rows), default=0)), np.int32)
    for row, ids in enumerate(rows):
        found[row, : len(ids)] = ids
    return found


def has_all_words(texts: Sequence[str], most: int = MOST) -> Bool[np.ndarray, " texts"]:
    """Return of which texts `hashed_ngrams` keeps the n-grams of all words."""
    words, _ = _analyzers()
    return np.array([len({_hash(gram) for gram in words(text)}) <= most for text in texts], bool)


def plain(text: str) -> str:
    """Return a text as its n-grams are read: in lower case, letters and digits in normal width."""
    return unicodedata.normalize("NFKC", text).lower()


def inverse_document_frequency(
    having: Int[np.ndarray, " ngrams"], texts: int
) -> Float[np.ndarray, " ngrams"]:
    """Return how rare n-grams are, log((1 + N) / (1 + N_g)) + 1, as scikit-learn counts it.

    Args:
        having: N_g, how many texts have each n-gram.
        texts: N, how many texts there are.
    """
    return np.log((1 + texts) / (1 + having)) + 1


@lru_cache(maxsize=1)
def _analyzers() -> tuple[Any, Any]:
    """Return what splits a text into words and pairs, and a plain word into runs of characters."""
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(ngram_range=(1, 2), preprocessor=plain, token_pattern=WORD)
    characters = CountVectorizer(ngram_range=(2, 4), preprocessor=str, analyzer="char_wb")
    return words.build_analyzer(), characters.build_analyzer()


# Texts repeat their words: hashing each run of a word anew took most of the time of a prediction.
@lru_cache(maxsize=2**15)
def _runs_in(word: str) -> tuple[int, ...]:
    """Return the numbers of the runs of characters in a plain word."""
    _, characters = _analyzers()
    return tuple(3 + 2 * _hash(gram) for gram in characters(word))


def _hash(gram: str) -> int:
    """Return a hash in [0, `HASHES` / 2 - 1) that is the same in every process."""
    return zlib.crc32(gram.encode("utf-8", "surrogatepass")) % (HASHES // 2 - 1)
