"""What shops write in a field, as the value that a catalogue holds.

Each function returns a `Value`, or raises ValueError with the fault and its mend, to follow "field
'...'" in a message.
"""

import html
import math
import re
import reprlib
import unicodedata
from collections.abc import Collection, Iterator
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any, NamedTuple

from metaguide.scoring import CHARACTER


class Value(NamedTuple):
    """A converted value.

    Attributes:
        value: as a catalogue holds it; None if the field is empty.
        remark: what the conversion took for granted, such as the unit of a time; "" if nothing.
    """

    value: Any
    remark: str = ""


_UNSEEN = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_BLOCK = re.compile(
    r"</?(?:address|article|aside|blockquote|br|center|dd|div|dl|dt|figcaption|figure|footer|h[1-6]"
    r"|header|hr|li|main|nav|ol|p|pre|section|table|tbody|td|tfoot|th|thead|tr|ul)\b[^<>]*>",
    re.IGNORECASE,
)
_INLINE = re.compile(
    r"</?(?:a|abbr|b|bdi|big|button|cite|code|data|del|em|font|i|iframe|img|ins|kbd|label|link|mark|meta"
    r"|picture|q|s|samp|small|source|span|strike|strong|sub|sup|time|tt|u|var|video|wbr)\b[^<>]*>",
    re.IGNORECASE,
)
"""The elements of HTML that stand in descriptions of products, with what begins and ends a line."""

_TYPED = {one: f"[{''.join(ones)}]" for ones in ("'’‘ʼ", '"“”„') for one in ones}
"""Quotation marks, each with all that are typed or printed in its place."""

_GOES_ON = re.compile(r"(?<=[^\W\d_])(?=[^\W\d_])|(?<=\d)(?=[.,]?\d)|(?<=\d[.,])(?=\d)")
"""Within a word or a number."""

_NOTHING = frozenset(("null", "none", "nan", "n/a", "#n/a", "\\n", "undefined"))
_NUMBER = r"(\d+(?:[.,]\d+)?)"
_IN_HAN = "颗星|顆星|つ星|星级|星級|星|分|点|點"
_STARS = re.compile(rf"{_NUMBER}\s*(?:stars?|sterne?|estrellas?|étoiles?|{_IN_HAN})?")
_STARS_OF = re.compile(rf"{_NUMBER}\s*(?:/|out of|of|von|sur|de)\s*{_NUMBER}\s*\D*")
_STARS_AMONG = re.compile(rf"{_NUMBER}つ星のうち\s*{_NUMBER}")
_DRAWN = re.compile(r"([★⭐]+)[☆✩]*")
_WORDS = {
    word: number
    for number, words in enumerate(("one 一", "two 二 两", "three 三", "four 四", "five 五"), 1)
    for word in words.split()
}
_POSITIVE = frozenset(
    "1 +1 1.0 positive pos good true 正面 正向 积极 積極 好评 好評 高評価".split()
)
_NEGATIVE = frozenset(
    "0 -1 0.0 -1.0 negative neg bad false 负面 負面 负向 負向 消极 消極 差评 差評 负评 負評 "
    "低評価".split()
)
_NEUTRAL = frozenset("neutral neu mixed 中性 中评 中評".split())
_YEAR_FIRST = re.compile(
    r"(\d{4})\s*[-/.年]\s*(\d{1,2})\s*[-/.月]\s*(\d{1,2})\s*[日号號]?"
    r"(?:[\st]*(\d{1,2})\s*[:时時点點]\s*(\d{1,2})(?:\s*[:分]\s*(\d{1,2}))?\s*[分秒]?)?"
)
"""A date with the year first, of which the order of the other parts is not in doubt, and a time."""
_CURRENCY = r"[A-Z]{0,3}[^\w\s.,-]?|kr|zł|Kč|Ft|lei|Rs|руб|元|円|원"
_PRICE = re.compile(rf"(?P<before>{_CURRENCY})\s*(?P<number>\d[\d.,'\s]*)(?P<after>{_CURRENCY})\.?")

_UNITS = ((1e11, 1.0, "seconds"), (1e14, 1e3, "milliseconds"), (1e17, 1e6, "microseconds"))
"""Below each bound in this century, times are in such units, of which a second has so many."""

_YEAR_1973 = 1e8


def _written(value: str) -> str:
    """Return what a short value says, in lower case and letters of normal width."""
    return unicodedata.normalize("NFKC", value).replace("\ufe0f", "").strip().lower()


def is_empty(value: Any) -> bool:
    """Return whether a field holds nothing: None, NaN, or white space."""
    if isinstance(value, str):
        return not value.replace("\ufeff", "").strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_nothing(value: Any) -> bool:
    """Return whether a field that names something holds a word for nothing, such as NULL."""
    return isinstance(value, str) and value.strip().lower() in _NOTHING


def plain(value: Any) -> Value:
    """Return a text or a number as a text, for ids: 12.0 is "12"."""
    value = _plain_number(value)
    if isinstance(value, str):
        return Value(value.strip("\ufeff \t\r\n") or None)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is {reprlib.repr(value)}; write a text")
    return Value(str(value))


def text(value: Any) -> Value:
    """Return a text without HTML's tags and entities, and without byte order marks.

    What a browser would show on lines of their own, such as paragraphs, is on lines of its own.
    """
    found = plain(value).value
    if found is None:
        return Value(None)
    return Value(_readable(found).strip() or None)


def _readable(said: str) -> str:
    said = _untagged(said)
    if "&" in said:
        # Once more, since some exports write the tags themselves as entities.
        said = _untagged(html.unescape(said))
    return said.replace("\ufeff", "")


def _untagged(said: str) -> str:
    if "<" not in said:
        return said
    found, blocks = _BLOCK.subn("\n", _UNSEEN.sub("", said))
    found = _INLINE.sub("", found)
    if not blocks:
        return found
    return "\n".join(filter(None, (line.strip() for line in found.split("\n"))))


def stars(value: Any, most: float = 5.0) -> Value:
    """Return stars from 1 to 5: a number, "4,5", "4 out of 5", "four stars", "★★★★☆".

    Args:
        value: what the shop writes.
        most: the best rating, which is 5 stars.
    """
    value = _plain_number(int(value) if isinstance(value, str) and value.isdecimal() else value)
    fault = "is {}; write a number of stars"
    if isinstance(value, str):
        said = _written(value)
        word = re.sub(rf"\s*(stars?|{_IN_HAN})$", "", said)
        if said.isalpha() and said in _POSITIVE | _NEGATIVE | _NEUTRAL:
            raise ValueError(f"is {reprlib.repr(value)}; map the column to sentiment instead")
        if drawn := _DRAWN.fullmatch(said):
            found = float(len(drawn[1]))
        elif word in _WORDS:
            found = float(_WORDS[word])
        elif (of := _STARS_OF.fullmatch(said)) and _decimal(of[2]):
            found, most = _decimal(of[1]), _decimal(of[2])
        elif (among := _STARS_AMONG.fullmatch(said)) and _decimal(among[1]):
            found, most = _decimal(among[2]), _decimal(among[1])
        elif number := _STARS.fullmatch(said):
            found = _decimal(number[1])
        else:
            raise ValueError(fault.format(reprlib.repr(value)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    else:
        raise ValueError(fault.format(reprlib.repr(value)))
    if not 0 < found <= most:
        raise ValueError(f"is {reprlib.repr(value)}; the range is above 0, to {most:g}")
    scaled = found if most == 5 else 5 * found / most
    if scaled < 1:
        return Value(1.0, "less than one star, stored as one")
    return Value(scaled, "" if most == 5 else "rated out of another number, stored out of 5")


def sentiment(value: Any, positive: Collection[str] = (), negative: Collection[str] = ()) -> Value:
    """Return "positive" or "negative"; nothing for a neutral one.

    Args:
        value: what the shop writes.
        positive: the words for "positive" in lower case; by default usual ones in English and
            Chinese, 1 and +1.
        negative: the words for "negative"; by default usual ones, 0 and -1. Usual words for a
            neutral one are known beside either, unless they are among these.
    """
    given = str(value if isinstance(value, bool) else plain(value).value).lower()
    said = {given, _written(given)}
    if not said.isdisjoint(positive or _POSITIVE):
        return Value("positive")
    if not said.isdisjoint(negative or _NEGATIVE):
        return Value("negative")
    if not said.isdisjoint(_NEUTRAL):
        return Value(None, "neutral, stored without a label")
    raise ValueError(
        f"is {reprlib.repr(value)}; say which words are positive and which are negative"
    )


def time(value: Any, pattern: str = "") -> Value:
    """Return seconds since 1970: of seconds, milliseconds, microseconds, or a date.

    Dates are those of ISO 8601, and others with the year first, such as "2024/3/5 9:00" or
    "2024年3月5日". Numbers below 10⁸, which would be times before 1973, are kept: they may be an
    order only. A time without a zone is taken as UTC.

    Args:
        value: what the shop writes.
        pattern: how times are written, as in `datetime.strptime`; by default as above.
    """
    if isinstance(value, date):
        is_day = not isinstance(value, datetime)
        return _since_1970(datetime.combine(value, time_of_day()) if is_day else value)
    said = str(plain(value).value)
    if pattern:
        try:
            return _since_1970(datetime.strptime(said, pattern))
        except ValueError as error:
            raise ValueError(f"is {said!r:.40}, which is not written as {pattern!r}") from error
    try:
        number = float(said)
    except ValueError:
        try:
            return _since_1970(_moment(said))
        except ValueError as error:
            raise ValueError(
                f"is {said!r:.40}; write seconds, milliseconds or ISO 8601, or say how times are "
                "written"
            ) from error
    if not math.isfinite(number):
        raise ValueError(f"is {said!r:.40}; write a finite number")
    if abs(number) < _YEAR_1973:
        return Value(number, "a small number, kept as an order in time")
    for bound, per_second, unit in _UNITS:
        if abs(number) < bound:
            return Value(number / per_second, f"in {unit}, stored in seconds")
    raise ValueError(f"is {said!r:.40}; write seconds, milliseconds or microseconds since 1970")


def _moment(said: str) -> datetime:
    try:
        return datetime.fromisoformat(said)
    except ValueError:
        found = _YEAR_FIRST.fullmatch(_written(said))
        if found is None:
            raise
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
        return datetime(year, month, day, hour, minute, second)


def price(value: Any) -> Value:
    """Return a price as a text, its currency as it is written: "$1,299.00" is "1299.00 $"."""
    found = _PRICE.fullmatch(str(text(value).value))
    fault = ValueError(f"is {reprlib.repr(value)}; write one number and a currency")
    if found is None or (found["before"] and found["after"]):
        raise fault
    digits = re.sub(r"['\s]", "", found["number"]).rstrip(".,")
    currency = found["before"] or found["after"]
    remark = ""
    marks = re.findall("[.,]", digits)
    *whole, last = re.split("[.,]", digits)
    is_decimal = len(marks) == 1 and (len(last) != 3 or whole == ["0"])
    if marks and (len(set(marks)) > 1 or is_decimal):
        number, thousands = f"{''.join(whole)}.{last}", whole[1:]
    else:
        number, thousands = "".join((*whole, last)), [*whole[1:], last][: len(marks)]
        if len(marks) == 1:
            remark = "the three digits after the mark are read as thousands"
    if any(len(group) != 3 for group in thousands) or len(set(marks[:-1])) > 1:
        raise fault
    return Value(f"{number} {currency}".strip(), remark)


def span(value: Any, passage: str, raw: Any = "") -> Value:
    """Return the characters of an answer in a passage, as [start, end].

    Args:
        value: the answer's text, its span as a list, or that list as JSON.
        passage: the text that holds it.
        raw: that text as the shop writes it, whose characters a span counts; by default the same.
    """
    if isinstance(value, str) and (bounds := re.fullmatch(r"[\[(](\d+), *(\d+)[\])]", value)):
        value = [int(bounds[1]), int(bounds[2])]
    if isinstance(value, list | tuple):
        return Value(_moved(list(value), passage, raw))
    answer = text(value).value
    if answer is None:
        return Value(None)
    places = list(_places(answer, passage))
    if not places:
        raise ValueError(f"is {reprlib.repr(value)}, which the text does not hold; copy it exactly")
    whole = [place for place in places if not any(_splits_a_word(passage, at) for at in place)]
    if not whole and len(answer) < 4:
        fault = "which the text holds within other words alone; copy it exactly"
        raise ValueError(f"is {reprlib.repr(value)}, {fault}")
    remark = "" if whole else "stands within another word"
    if len(whole or places) > 1:
        remark = "occurs several times in the text; the first is stored"
    return Value(list((whole or places)[0]), remark)


def _places(answer: str, passage: str) -> Iterator[tuple[int, int]]:
    """Yield where a passage holds an answer, with any white space and quotation marks."""
    words = ("".join(_TYPED.get(one, re.escape(one)) for one in word) for word in answer.split())
    return (found.span() for found in re.finditer(r"\s+".join(words), passage))


def _splits_a_word(passage: str, at: int) -> bool:
    """Return whether a word or a number goes on there. Chinese and Japanese have no such places."""
    beside = passage[max(0, at - 1) : at + 1]
    return bool(_GOES_ON.match(passage, at)) and not CHARACTER.search(beside)


def _moved(bounds: list[Any], passage: str, raw: Any) -> list[Any]:
    """Return where in a passage the characters are that a span of its raw text holds.

    Raises:
        ValueError: they are not in it.
    """
    if not isinstance(raw, str) or raw in ("", passage):
        return bounds
    if [type(one) for one in bounds] != [int, int]:
        return bounds
    start, end = bounds
    answer = text(raw[start:end]).value if 0 <= start < end <= len(raw) else None
    # Of the places that hold these words, the one after as many characters.
    before = len(_readable(raw[:start]).lstrip())
    places = [one.start() for one in re.finditer(re.escape(answer), passage)] if answer else []
    if not places:
        raise ValueError(f"is {bounds}, which are no words of the text; copy them instead")
    start = min(places, key=lambda place: abs(place - before))
    return [start, start + len(answer or "")]


def _plain_number(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else value


def _decimal(number: str) -> float:
    return float(number.replace(",", "."))


def _since_1970(moment: datetime) -> Value:
    if moment.tzinfo is None:
        return Value(moment.replace(tzinfo=UTC).timestamp(), "a date without a zone, taken as UTC")
    return Value(moment.timestamp(), "a date, stored in seconds")
