"""Scoring of answers in words: the normalisation, exact match and F1 of SQuAD.

Follows Rajpurkar et al. 2016 for languages that separate words; in those that do not, such as
Chinese and Japanese, a character counts as a word (Cui et al. 2019; Lewis et al. 2020).
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

_ARTICLES = re.compile(r"\b(a|an|the)\b")
CHARACTER = re.compile(
    "[\u3005-\u3007\u3031-\u3035\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""Ideographs, iteration marks, kana (full and half width): scripts without blanks between words."""


@lru_cache(maxsize=1 << 14)
def answer_words(text: str) -> tuple[str, ...]:
    """Return the words of an answer that count.

    Letters are in lower case and normal width; punctuation (of any script) and the articles a, an
    and the are left out; the rest is split at white space, and each Chinese or Japanese character
    is a word. If nothing else is left of a text, such as "$", its characters are kept.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    kept = _ARTICLES.sub(" ", "".join(char for char in text if not _is_punctuation(char)))
    return tuple(CHARACTER.sub(r" \g<0> ", kept).split() or text.split())


def answer_scores(said: str, golds: Sequence[str]) -> tuple[float, float]:
    """Score one answer by SQuAD's exact match and F1, each the best over the gold answers.

    Args:
        said: the predicted answer; "" for no answer.
        golds: the gold answers; empty if there is no answer.

    Returns:
        Exact match, 1 or 0, and F1 = 2 |common| / (|said| + |gold|) over words with repeats.
    """
    if not said or not golds:
        right = float(not said and not golds)
        return right, right
    words = answer_words(said)
    scores = [_against(words, answer_words(gold)) for gold in golds]
    return max(em for em, _ in scores), max(f1 for _, f1 in scores)


def _against(said: tuple[str, ...], gold: tuple[str, ...]) -> tuple[float, float]:
    if said == gold or set(said).isdisjoint(gold):
        return float(said == gold), float(said == gold)
    common = (Counter(said) & Counter(gold)).total()
    return 0.0, 2.0 * common / (len(said) + len(gold))


@lru_cache(maxsize=1 << 12)
def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char)[0] == "P"
