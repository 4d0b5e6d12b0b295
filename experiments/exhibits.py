"""The part of the report where one sees the guide at work on a held-out domain: its HTML."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TypedDict

import numpy as np
from PIL import Image


class Item(TypedDict):
    """A product of a list; `image` is uint8 [height, width, 3], or None."""

    title: str
    image: np.ndarray | None


class ProductShown(TypedDict):
    """A product, its category, and what the guide takes it for, with probabilities by category."""

    title: str
    image: np.ndarray | None
    target: str
    predicted: str
    probabilities: Mapping[str, float]


class ReviewShown(TypedDict):
    """A review: "positive" or "negative", true (None: unknown) and predicted, and stars if any."""

    text: str
    target: str | None
    predicted: str
    positive: float
    stars: float | None
    predicted_stars: float | None


class QuestionShown(TypedDict):
    """A question on a text; both answers are [from, to) in its characters, None for no answer."""

    question: str
    text: str
    answer: tuple[int, int] | None
    predicted: tuple[int, int] | None


class RecommendationShown(TypedDict):
    """A user: the products taken, oldest first; the best ranked; the true next one and its rank."""

    user: str
    history: Sequence[Item]
    ranked: Sequence[Item]
    target: Item
    rank: int


class Showcase(TypedDict, total=False):
    """What is shown of one held-out domain; any part may be missing but `domain`."""

    domain: str
    note: str
    products: Sequence[ProductShown]
    reviews: Sequence[ReviewShown]
    questions: Sequence[QuestionShown]
    recommendation: RecommendationShown | None


def exhibit(shown: Showcase) -> str:
    """The showcase of one domain as HTML."""
    parts = [f"<h2>{escape(shown.get('domain', ''))}</h2>"]
    if note := shown.get("note"):
        parts.append(f'<p class="soft">{escape(note)}</p>')
    if products := shown.get("products"):
        parts.append("<h3>Which category is it?</h3>")
        parts.append(_cards(_product(product) for product in products))
    if reviews := shown.get("reviews"):
        parts.append("<h3>What do the buyers think?</h3>")
        parts.append(_cards(_review(review) for review in reviews))
    if questions := shown.get("questions"):
        parts.append("<h3>Where does it say so?</h3>")
        parts.append(
            '<p class="small soft"><mark>Marked</mark>: the guide\'s answer. '
            '<u class="gold">Underlined</u>: the true one.</p>'
        )
        parts += [_question(question) for question in questions]
    if recommendation := shown.get("recommendation"):
        parts.append("<h3>What comes next for this user?</h3>")
        parts.append(_recommendation(recommendation))
    return "\n".join(parts)


def _cards(cards) -> str:
    return '<div class="cards">' + "".join(cards) + "</div>"


def _picture(image: np.ndarray | None, title: str) -> str:
    if image is None:
        return '<span class="picture"></span>'
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image, np.uint8)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="picture" alt="{escape(title)}" src="data:image/png;base64,{data}">'


def _verdict(predicted: str, target: str | None) -> str:
    if target is None:
        return f"<span>{escape(predicted)}</span>"
    if predicted == target:
        return f'<span class="verdict right">✓ {escape(predicted)}</span>'
    return (
        f'<span class="verdict wrong">✗ {escape(predicted)}</span> '
        f'<span class="small soft">it is {escape(target)}</span>'
    )


def _product(product: ProductShown) -> str:
    likely = sorted(product["probabilities"].items(), key=lambda pair: -pair[1])
    chances = "".join(
        f"<span>{escape(name)}</span>{_bar(chance, name == product['target'])}"
        f"<span>{chance:.0%}</span>"
        for name, chance in likely[:5]
    )
    return (
        f'<div class="card product">{_picture(product["image"], product["title"])}'
        f"<div><h4>{escape(product['title'])}</h4>"
        f"{_verdict(product['predicted'], product['target'])}</div>"
        f'<div class="chances">{chances}</div></div>'
    )


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
    return (
        f'<div class="card"><p>{escape(review["text"])}</p>'
        f"{_verdict(review['predicted'], review['target'])} "
        f'<span class="small soft">positive with {review["positive"]:.0%}</span>{stars}</div>'
    )


def _stars(count: float) -> str:
    full = min(5, max(0, round(count)))
    return f'<span class="stars">{"★" * full}{"☆" * (5 - full)}</span> {count:.1f}'


def _question(question: QuestionShown) -> str:
    answer, predicted = question["answer"], question["predicted"]
    if answer is None:
        right = predicted is None
        truth = "Rightly so." if right else "In truth the text does not answer this."
    else:
        right = predicted == tuple(answer)
        truth = "" if predicted is not None else "The answer was there."
    said = "" if predicted is not None else "The guide says that the text does not answer this. "
    sign = '<span class="verdict right">✓</span>' if right else _miss(answer, predicted)
    return (
        f'<div class="card question"><h4>{escape(question["question"])} {sign}</h4>'
        f'<p class="passage">{_passage(question["text"], answer, predicted)}</p>'
        f'<p class="small soft">{said}{truth}</p></div>'
    )


def _miss(answer: tuple[int, int] | None, predicted: tuple[int, int] | None) -> str:
    near = (
        answer is not None
        and predicted is not None
        and max(answer[0], predicted[0]) < min(answer[1], predicted[1])
    )
    return f'<span class="verdict {"right" if near else "wrong"}">{"≈" if near else "✗"}</span>'


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
    if shown["rank"] > len(places):
        ranked += _item(shown["rank"], shown["target"], True)
    return (
        f'<p class="small soft">User {escape(shown["user"])}. The next product was '
        f"{escape(target)}; the guide put it on place {shown['rank']}.</p>"
        f'<div class="cards"><div class="card"><h4>Taken so far</h4>'
        f'<ol class="items">{history}</ol></div>'
        f'<div class="card"><h4>The guide recommends</h4>'
        f'<ol class="items">{ranked}</ol></div></div>'
    )


def _item(place: int, item: Item, is_next: bool) -> str:
    kind = ' class="next"' if is_next else ""
    title = escape(item["title"]) + (" ✓" if is_next else "")
    return (
        f'<li{kind}><span class="place">{place}</span>{_picture(item["image"], item["title"])}'
        f"<span>{title}</span></li>"
    )
