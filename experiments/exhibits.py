"""HTML of the part of the report that shows the guide at work on a held-out domain."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TypedDict

import numpy as np
from PIL import Image


class Item(TypedDict):
    """A product in a list; `image` is uint8 [height, width, 3], or None."""

    title: str
    image: np.ndarray | None


class ProductShown(TypedDict):
    """A product, its category, and the guide's prediction with probabilities by category."""

    title: str
    image: np.ndarray | None
    target: str
    predicted: str
    probabilities: Mapping[str, float]


class ReviewShown(TypedDict):
    """A review with its true (None: unknown) and predicted sentiment, and stars if any."""

    text: str
    target: str | None
    predicted: str
    positive: float
    stars: float | None
    predicted_stars: float | None


class QuestionShown(TypedDict):
    """A question about a text; both answers are character spans [from, to), None for no answer."""

    question: str
    text: str
    answer: tuple[int, int] | None
    predicted: tuple[int, int] | None


class RecommendationShown(TypedDict):
    """A user: products taken, oldest first; top-ranked products; the true next one and its rank."""

    user: str
    history: Sequence[Item]
    ranked: Sequence[Item]
    target: Item
    rank: int


class Showcase(TypedDict, total=False):
    """What is shown of one held-out domain; any part except `domain` may be missing."""

    domain: str
    note: str
    products: Sequence[ProductShown]
    reviews: Sequence[ReviewShown]
    questions: Sequence[QuestionShown]
    recommendation: RecommendationShown | None


def exhibit(shown: Showcase) -> str:
    """Return the showcase of one domain as HTML."""
    parts = [f"<h2>{escape(shown.get('domain', ''))}</h2>"]
    if note := shown.get("note"):
        parts.append(f'<p class="soft">{escape(note)}</p>')
    if products := shown.get("products"):
        right = sum(one["predicted"] == one["target"] for one in products)
        parts.append(f"<h3>Which category is it?{_tally(right, len(products), 'products')}</h3>")
        parts.append(_cards(_product(product) for product in products))
    if reviews := shown.get("reviews"):
        known = [one for one in reviews if one["target"] is not None]
        right = sum(one["predicted"] == one["target"] for one in known)
        parts.append(f"<h3>What do the buyers think?{_tally(right, len(known), 'reviews')}</h3>")
        parts.append(_cards(_review(review) for review in reviews))
    if questions := shown.get("questions"):
        right = sum(_is_right(one["answer"], one["predicted"]) for one in questions)
        near = sum(_is_near(one["answer"], one["predicted"]) for one in questions)
        tally = _tally(right, len(questions), "questions", near)
        parts.append(f"<h3>Where does it say so?{tally}</h3>")
        parts.append(
            '<p class="small soft"><mark>Marked</mark>: the guide\'s answer. '
            '<u class="gold">Underlined</u>: the true one. ≈: a part of it.</p>'
        )
        parts += [_question(question) for question in questions]
    if recommendation := shown.get("recommendation"):
        place = recommendation["rank"]
        parts.append(
            "<h3>What comes next for this user?"
            f' <span class="tally">the next product is ranked {place}</span></h3>'
        )
        parts.append(_recommendation(recommendation))
    return "\n".join(parts)


def _tally(right: int, count: int, what: str, near: int = 0) -> str:
    """Return how many of the answers shown are right."""
    if not count:
        return ""
    part = f", {near} in part" if near else ""
    return f' <span class="tally">{right} of {count} {what} right{part}</span>'


def _cards(cards) -> str:
    return '<div class="cards">' + "".join(cards) + "</div>"


def _picture(image: np.ndarray | None, title: str) -> str:
    if image is None:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image, np.uint8)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="picture" alt="{escape(title)}" src="data:image/png;base64,{data}">'


def _verdict(predicted: str, target: str | None, sure: str = "") -> str:
    """Return the answer with a mark, how sure the guide is, and the truth if it differs."""
    kind, sign = {None: ("", ""), predicted: (" right", "✓ ")}.get(target, (" wrong", "✗ "))
    truth = f"actually {target}" if kind == " wrong" else ""
    beside = "; ".join(filter(None, (sure, truth)))
    said = f'<span class="verdict{kind}">{sign}{escape(predicted)}</span>'
    return f'{said} <span class="small soft">{escape(beside)}</span>' if beside else said


def _product(product: ProductShown) -> str:
    likely = sorted(product["probabilities"].items(), key=lambda pair: -pair[1])
    chances = "".join(
        f"<span>{escape(name)}</span>{_bar(chance, name == product['target'])}"
        f"<span>{chance:.0%}</span>"
        for name, chance in likely[:5]
    )
    return (
        f'<div class="card product{_pictured([product])}">'
        f"{_picture(product['image'], product['title'])}"
        f"<div><h4>{escape(product['title'])}</h4>"
        f"{_verdict(product['predicted'], product['target'])}</div>"
        f'<div class="chances">{chances}</div></div>'
    )


def _pictured(items: Sequence[Item | ProductShown]) -> str:
    """Return the CSS class that adds a column for pictures, if any item has a picture."""
    return "" if all(item["image"] is None for item in items) else " pictured"


def _bar(share: float, true: bool) -> str:
    kind = ' class="true"' if true else ""
    return f'<span class="bar"><i{kind} style="width:{100 * share:.1f}%"></i></span>'


def _review(review: ReviewShown) -> str:
    stars = ""
    if review["predicted_stars"] is not None:
        stars = f'<p class="small">{_stars(review["predicted_stars"])} predicted'
        if review["stars"] is not None:
            stars += f", {_stars(review['stars'])} given"
        stars += "</p>"
    positive = review["positive"]
    chance = positive if review["predicted"] == "positive" else 1 - positive
    sure = f"{_percent(chance)} sure"
    return (
        f'<div class="card"><p>{escape(review["text"])}</p>'
        f"{_verdict(review['predicted'], review['target'], sure)}{stars}</div>"
    )


def _percent(chance: float) -> str:
    """Return "89%"; a probability below 1 is never shown as 100%."""
    return "over 99%" if 0.995 <= chance < 1 else f"{chance:.0%}"


def _stars(count: float) -> str:
    full = min(5, max(0, round(count)))
    return f'<span class="stars">{"★" * full}{"☆" * (5 - full)}</span> {count:.1f}'


def _question(question: QuestionShown) -> str:
    answer, predicted = question["answer"], question["predicted"]
    right = _is_right(answer, predicted)
    if answer is None:
        truth = "This is right." if right else "Actually the text does not answer this."
    else:
        truth = "" if predicted is not None else "The text contains the answer."
    said = "" if predicted is not None else "The guide says that the text does not answer this. "
    sign = '<span class="verdict right">✓</span>' if right else _miss(answer, predicted)
    return (
        f'<div class="card question"><h4>{escape(question["question"])} {sign}</h4>'
        f'<p class="passage">{_passage(question["text"], answer, predicted)}</p>'
        f'<p class="small soft">{said}{truth}</p></div>'
    )


Span = tuple[int, int] | None


def _is_right(answer: Span, predicted: Span) -> bool:
    return predicted == (None if answer is None else tuple(answer))


def _is_near(answer: Span, predicted: Span) -> bool:
    """Return whether an answer that is not right overlaps the true one."""
    if answer is None or predicted is None or _is_right(answer, predicted):
        return False
    return max(answer[0], predicted[0]) < min(answer[1], predicted[1])


def _miss(answer: Span, predicted: Span) -> str:
    near = _is_near(answer, predicted)
    return f'<span class="verdict {"near" if near else "wrong"}">{"≈" if near else "✗"}</span>'


def _passage(text: str, answer: tuple[int, int] | None, predicted: tuple[int, int] | None) -> str:
    spans = [span for span in (answer, predicted) if span is not None]
    cuts = sorted({0, len(text), *(place for span in spans for place in span)})
    parts = []
    for first, past in zip(cuts, cuts[1:], strict=False):
        part = escape(text[first:past])
        if answer is not None and answer[0] <= first and past <= answer[1]:
            part = f'<u class="gold">{part}</u>'
        if predicted is not None and predicted[0] <= first and past <= predicted[1]:
            part = f"<mark>{part}</mark>"
        parts.append(part)
    return "".join(parts)


def _recommendation(shown: RecommendationShown) -> str:
    target = shown["target"]["title"]
    history = "".join(_item(number, item, False) for number, item in enumerate(shown["history"], 1))
    places = list(enumerate(shown["ranked"], 1))
    ranked = "".join(_item(place, item, place == shown["rank"]) for place, item in places)
    listed = list(shown["ranked"])
    if shown["rank"] > len(places):
        listed.append(shown["target"])
        ranked += _item(shown["rank"], shown["target"], True)
    return (
        f'<p class="small soft">User {escape(shown["user"])}. The next product was '
        f"{escape(target)}; the guide ranked it {shown['rank']}.</p>"
        f'<div class="cards"><div class="card"><h4>Taken so far</h4>'
        f'<ol class="items{_pictured(shown["history"])}">{history}</ol></div>'
        f'<div class="card"><h4>The guide recommends</h4>'
        f'<ol class="items{_pictured(listed)}">{ranked}</ol></div></div>'
    )


def _item(place: int, item: Item, is_next: bool) -> str:
    kind = ' class="next"' if is_next else ""
    title = escape(item["title"]) + (" ✓" if is_next else "")
    return (
        f'<li{kind}><span class="place">{place}</span>{_picture(item["image"], item["title"])}'
        f'<span class="title">{title}</span></li>'
    )
