"""The sentences of a text."""

import re
from collections.abc import Iterator, Sequence

from metaguide.scoring import CHARACTER

# What may end a sentence, with the closing quotes and brackets after it.
_END = re.compile(
    r"(?:(?P<han>[。！？；｡︒…]*[。！？；｡︒])|(?P<mark>[.．!?;؟।‽][.．!?。！？;؟।‽…]*)|\n+)"
    r"[\"'”’»)\]）」』】〉》]*"
)
# Abbreviations: no sentence ends behind the first; none ends behind the others where a small letter
# or a number follows, and for units only behind a number.
_BEFORE_A_NAME = frozenset(
    "mr mrs ms dr prof st sr jr rev hon gen col capt lt sgt vs approx ca cf e.g i.e eg ie viz resp "
    "incl excl z.b u.a bzw ggf".split()
)
_MID_SENTENCE = frozenset(
    "no nos nr vol fig figs eq art sec tel ext max avg temp dia qty inc ltd co corp bros etc al "
    "est dept a.m p.m u.s u.k e.u jan feb apr jun jul aug sep sept oct nov dec".split()
)
_UNITS = frozenset(
    "in ft yd mi oz lb lbs pt qt gal cm mm km kg mg ml min hr hrs pcs wt am pm".split()
)
_STARTERS = frozenset(
    "the a an it its this that these those they he she we you i there here if but and so in on at "
    "for with when what my our your not no".split()
)

_LONG = 20
"""A sentence of more Chinese or Japanese characters than this ends at its commas too."""

# What ends a clause of such a sentence.
_CLAUSE = re.compile(rf"，+|(?<={CHARACTER.pattern})(?:[～~]+|\s+)")


def sentences(text: str) -> list[tuple[int, int]]:
    """Split a text into sentences.

    They end at . ! ? ; and a line's end, and at 。！？； A full stop is none within a number, an
    address or a name ("1.5 kg", "example.com"), behind the number of a line or an initial
    ("J. Smith"), or behind an abbreviation where the sentence may go on ("approx. 5", "in. wide").
    Chinese reviews often have no other marks than commas, or blanks alone: a sentence of more than
    20 Chinese or Japanese characters ends there too.

    Returns:
        Half-open spans of characters, without the white space around them; all else is in one.
    """
    spans, begin = [], 0
    ends = [match.end() for match in _END.finditer(text) if _ends_sentence(text, match)]
    for end in _with_clauses(text, [*ends, len(text)]):
        first = begin + len(text[begin:end]) - len(text[begin:end].lstrip())
        past = first + len(text[first:end].rstrip())
        if past > first and not any(map(str.isalnum, text[first:past])) and spans:
            spans[-1] = spans[-1][0], past  # marks alone belong to the sentence before
        elif past > first:
            spans.append((first, past))
        begin = end
    return spans


def _with_clauses(text: str, ends: Sequence[int]) -> Iterator[int]:
    """Yield the ends of sentences, and those of the clauses of long ones."""
    begin = 0
    for end in ends:
        if end - begin > _LONG and len(CHARACTER.findall(text, begin, end)) > _LONG:
            yield from (match.end() for match in _CLAUSE.finditer(text, begin, end))
        yield end
        begin = end


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    mark = match["mark"]
    if mark is None:
        return True
    before = re.split(r"[\s(\[\"'“‘（「『]", text[: match.start()])[-1]
    letters = re.search(r"[^\W\d_]*$", before)
    follows = text[match.end() : match.end() + 1]
    if follows and not follows.isspace():
        # Nothing stands between: a number, an address, or a blank that was forgotten.
        if CHARACTER.match(follows):
            return mark not in (".", "．") or bool(CHARACTER.match(before[-1:]))
        word = letters.group() if letters else ""
        return follows.isupper() and len(word) > 1 and (mark[0] != "." or word.islower())
    behind = re.match(r"\s*(\w?)[^\W\d_]*", text[match.end() :])
    first, word = (behind[1], behind[0].strip().lower()) if behind else ("", "")
    if mark != "." or not first:
        return True
    is_numbering = (
        before.isdecimal() and text[: match.start()].rpartition("\n")[2].strip() == before
    )
    if is_numbering or before.lower() in _BEFORE_A_NAME:
        return False
    is_unit = before.lower().lstrip("0123456789.,") in _UNITS and re.search(
        r"\d\s*\w+$", text[: match.start()]
    )
    if before.lower() in _MID_SENTENCE or is_unit:
        return not (first.islower() or first.isdigit())
    if not re.fullmatch(r"(?:[^\W\d_]\.)*[^\W\d_]", before) or CHARACTER.match(before):
        return True
    # A letter or several: an initial before a name, or the end of "vitamin C".
    return first.isupper() and (len(before) > 1 or before.islower() or word in _STARTERS)
