"""The bazaar: a pure function of its settings, with transfer that its knobs turn on and off."""

import dataclasses
import os
import re
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from metaguide.data.bazaar import BazaarSettings, generate
from metaguide.data.bazaar_pictures import render
from metaguide.data.bazaar_texts import own_sentiment
from metaguide.data.bazaar_words import COLOURS, MATERIALS, vocabularies
from metaguide.data.catalogue import Domain, Product, read_domain, write_domain

HELD_OUT = (("home_appliances", "toys"), ("books", "computers"), ("phones", "groceries"))
SMALL = BazaarSettings(
    domains=("toys", "books"), products=2, reviews=12, questions=12, users=3, interactions=(2, 4)
)


@cache
def world(shared: float | None = None) -> dict[str, Domain]:
    """The default world, or one of reviews alone at another `shared`."""
    if shared is None:
        return generate(BazaarSettings())
    return generate(
        BazaarSettings(shared=shared, products=4, questions=0, users=0, interactions=(1, 1))
    )


def tokens(text: str) -> list[str]:
    """Latin words, Chinese characters and pairs of these."""
    found = re.findall(r"[a-zà-ÿ]+|\d+", text.lower())
    for run in re.findall("[\u4e00-\u9fff]+", text):
        found += [*run, *(run[k : k + 2] for k in range(len(run) - 1))]
    return found


def is_chinese(text: str) -> bool:
    return re.search("[\u4e00-\u9fff]", text) is not None


def product_text(product: Product) -> str:
    return f"{product.title} {product.description}"


def zero_shot(domains: dict[str, Domain], held_out: tuple[str, ...]) -> tuple[float, float]:
    """Accuracy on domains not seen, of TF-IDF with logistic regression and of the majority."""
    reviews = {
        name: [(review.text, review.label) for review in domain.reviews if review.label is not None]
        for name, domain in domains.items()
    }
    train = [row for name, rows in reviews.items() if name not in held_out for row in rows]
    test = [row for name in held_out for row in reviews[name]]
    vectors = TfidfVectorizer(analyzer=tokens)
    model = LogisticRegression(C=3, max_iter=500)
    model.fit(vectors.fit_transform([text for text, _ in train]), [label for _, label in train])
    labels = np.array([label for _, label in test])
    accuracy = float(model.score(vectors.transform([text for text, _ in test]), labels))
    return accuracy, float(max(labels.mean(), 1 - labels.mean()))


def test_same_seed_same_world_other_seed_other_world() -> None:
    """Would catch chance that does not come from the seed, and a seed that is not used."""
    one, two = generate(SMALL), generate(SMALL)
    assert one == two
    other = generate(dataclasses.replace(SMALL, seed=1))
    for name in SMALL.domains:
        for part in ("products", "reviews", "questions", "interactions"):
            assert getattr(one[name], part) != getattr(other[name], part)


@pytest.mark.slow
def test_same_world_in_another_process() -> None:
    """Would catch an order or a number that hangs on the process, such as hash() of a string."""
    program = (
        "import zlib; from metaguide.data.bazaar import *;"
        "d = generate(BazaarSettings(domains=('toys',), products=2, reviews=9, questions=9,"
        " users=3, interactions=(2, 4)))['toys'];"
        "digest = zlib.crc32(repr([(p.title, p.description, p.image.tobytes()) for p in"
        " d.products] + [d.reviews, d.questions, d.interactions]).encode())"
    )
    here: dict[str, int] = {}
    exec(program, here)
    there = subprocess.run(
        [sys.executable, "-c", program + "; print(digest)"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    assert int(there.stdout) == here["digest"]


def test_a_domain_and_a_part_stand_alone() -> None:
    """Would catch a domain that changes with its neighbours, products that change with reviews."""
    alone = generate(dataclasses.replace(SMALL, domains=("books",)))["books"]
    assert alone == generate(SMALL)["books"]
    fewer = generate(dataclasses.replace(SMALL, reviews=5))["books"]
    assert fewer.products == alone.products
    assert fewer.reviews == alone.reviews[:5]
    assert fewer.interactions == alone.interactions


@pytest.mark.slow
@pytest.mark.parametrize("name", list(vocabularies()))
def test_parts_of_the_default_world(name: str) -> None:
    """Would catch missing examples, spans that are off, times out of order, a lost language."""
    domain = world()[name]
    products = {product.id: product for product in domain.products}
    counts = np.unique([product.category for product in domain.products], return_counts=True)[1]
    assert len(counts) == 8 and counts.min() >= 16
    assert len(products) == 160 and len(domain.reviews) == 240 and len(domain.questions) == 160

    assert sum(is_chinese(product.title) for product in domain.products) == 40
    for items in (domain.reviews, domain.questions):
        assert all(is_chinese(i.text) == is_chinese(products[i.product or ""].title) for i in items)

    labels = [review.label for review in domain.reviews]
    assert min(labels.count(0), labels.count(1)) >= 70

    for question in domain.questions:
        if question.answer is not None:
            start, end = question.answer
            assert 0 <= start < end <= len(question.text)
            value = question.text[start:end]
            assert value == value.strip() and "." not in value and "。" not in value
    missing = np.mean([question.answer is None for question in domain.questions])
    assert 0.2 < missing < 0.4

    users: dict[str, list[tuple[float, str]]] = {}
    for interaction in domain.interactions:
        users.setdefault(interaction.user, []).append((interaction.time, interaction.product))
    assert len(users) == 120
    for rows in users.values():
        assert rows == sorted(rows) and 12 <= len(rows) <= 16
        assert len({product for _, product in rows}) == len(rows)


def test_answers_are_values_of_what_is_asked() -> None:
    """Would catch a span that points at the distractor: its sentence tells the asked attribute."""
    knobs = dataclasses.replace(SMALL, shared=1.0, chinese=0.0, distractors=1.0, questions=200)
    sentences = {
        "How heavy is it?": r"(?:It weighs|The weight is) ",
        "How heavy is the parcel?": r"(?:With the box it weighs|The parcel weight is) ",
        "What colour is the trim?": r"(?:The trim is|Its edge is) ",
    }
    seen = 0
    for question in generate(knobs)["toys"].questions:
        weights = re.findall(r"\d kg", question.text)
        assert len(weights) == len(set(weights)) <= 2
        told = sentences.get(question.question)
        if told is None:
            continue
        found = re.search(rf"(?:^|\. ){told}([^.]+)\.", question.text)
        assert (found is None) == (question.answer is None)
        if found is not None:
            assert found.span(1) == question.answer
            seen += 1
    assert seen >= 5


def test_round_trip_through_the_disk(tmp_path) -> None:
    """Would catch a world that the catalogue's reader refuses or reads otherwise."""
    for name, domain in generate(SMALL).items():
        write_domain(domain, tmp_path / name)
        assert read_domain(tmp_path / name) == domain


@pytest.mark.slow
def test_shared_words_are_what_transfers() -> None:
    """The control. Would catch sentiment that leaks between domains, and an idle knob."""
    accuracy = {
        shared: [zero_shot(world(shared), held_out) for held_out in HELD_OUT]
        for shared in (0.0, 0.7, 1.0)
    }
    means = {shared: np.mean([a for a, _ in rows]) for shared, rows in accuracy.items()}
    assert means[0.0] <= np.mean([majority for _, majority in accuracy[0.0]]) + 0.03
    assert abs(means[0.0] - 0.5) < 0.06
    assert 0.65 < means[0.7] < 0.82
    assert means[1.0] > means[0.7] + 0.03
    for held_out in HELD_OUT:
        score, majority = zero_shot(world(), held_out)
        assert 0.6 <= score <= 0.85 and score > majority + 0.05


def test_private_words_belong_to_one_domain() -> None:
    """Would catch a word, a character or an invented word of one domain's praise elsewhere."""
    for count in (4, 6, 30):
        for language in ("en", "zh"):
            owners: dict[str, tuple[int, int]] = {}
            for number, words in enumerate(vocabularies().values()):
                for side, stock in enumerate(own_sentiment(words, language, number, count)):
                    assert len(set(stock)) == count
                    real = count <= 6 and language == "zh"
                    for unit in "".join(stock) if real else stock:
                        owner = owners.setdefault(unit, (number, side))
                        assert owner == (number, side) or (real and owner[0] == number)


@cache
def episodes(shots: int) -> dict[str, float]:
    """Mean 5-way accuracy of text, of pictures, of class names, over 25 episodes."""
    rng = np.random.default_rng(0)
    scores: dict[str, list[float]] = {"text": [], "picture": [], "name": []}
    for _ in range(25):
        domain = world()[list(world())[int(rng.integers(10))]]
        by_category: dict[str, list[Product]] = {}
        for product in domain.products:
            by_category.setdefault(product.category or "", []).append(product)
        chosen = rng.permutation(sorted(by_category))[:5]
        support, query = [], []
        for category in chosen:
            rows = [by_category[category][k] for k in rng.permutation(20)]
            support += rows[:shots]
            query += rows[10:]
        labels, truth = ([p.category for p in part] for part in (support, query))
        vectors = TfidfVectorizer(analyzer=tokens)
        vectors.fit([product_text(product) for product in domain.products])
        texts, queries = (
            vectors.transform([product_text(p) for p in part]) for part in (support, query)
        )
        model = LogisticRegression(C=10).fit(texts, labels)
        scores["text"].append(float(model.score(queries, truth)))

        pixels = [np.stack([p.image.ravel() for p in part]) / 255.0 for part in (support, query)]  # pyright: ignore
        centres = pixels[0].reshape(5, shots, -1).mean(1)
        nearest = ((pixels[1][:, None] - centres) ** 2).sum(-1).argmin(1)
        scores["picture"].append(float(np.mean(chosen[nearest] == truth)))

        overlap = (queries @ vectors.transform(chosen).T).toarray()
        guess = (overlap + 1e-9 * rng.random(overlap.shape)).argmax(1)
        scores["name"].append(float(np.mean(chosen[guess] == truth)))
    return {name: float(np.mean(values)) for name, values in scores.items()}


@pytest.mark.slow
def test_categories_are_neither_plain_nor_hidden() -> None:
    """Would catch a baseline at the ceiling or at chance (0.2) in text, pictures or names."""
    one, five = episodes(1), episodes(5)
    assert 0.3 < one["text"] < five["text"] - 0.1
    assert 0.4 < five["text"] < 0.85
    assert 0.35 < one["picture"] < five["picture"] < 0.9
    assert 0.3 < five["name"] < 0.6


@pytest.mark.slow
def test_category_names_stand_in_some_texts() -> None:
    """Would catch names in every text, which make zero-shot trivial, or in none."""
    products = [product for domain in world().values() for product in domain.products]
    named = [
        bool(set((product.category or "").split()) & set(tokens(product_text(product))))
        for product in products
        if not is_chinese(product.title)
    ]
    assert 0.35 < np.mean(named) < 0.5


def overlap_f1(guess: str, truth: str) -> float:
    one, two = (re.findall("[a-z]+|\\d+|[\u4e00-\u9fff]", text.lower()) for text in (guess, truth))
    if not one or not two:
        return float(one == two)
    common = sum(min(one.count(word), two.count(word)) for word in set(one))
    return 2 * common / (len(one) + len(two))


def test_the_best_sentence_is_a_poor_answer() -> None:
    """Would catch questions that word overlap alone answers."""
    best = []
    for abstain in (-1, 0, 1, 2):
        scores = []
        for question in (q for domain in world().values() for q in domain.questions):
            asked = set(tokens(question.question))
            sentences = [s for s in re.split(r"(?<=[.。])\s*", question.text) if s]
            overlaps = [len(asked & set(tokens(sentence))) for sentence in sentences]
            row = int(np.argmax(overlaps))
            truth = "" if question.answer is None else question.text[slice(*question.answer)]
            scores.append(overlap_f1(sentences[row] if overlaps[row] > abstain else "", truth))
        best.append(np.mean(scores))
    assert 0.3 < max(best) < 0.6


def test_recommendation_baselines_beat_chance_and_leave_room() -> None:
    """Would catch users without taste, products without popularity, or either at the ceiling."""
    hits: dict[str, list[bool]] = {"popular": [], "content": []}
    for domain in world().values():
        rows = {product.id: row for row, product in enumerate(domain.products)}
        users: dict[str, list[int]] = {}
        for interaction in domain.interactions:
            users.setdefault(interaction.user, []).append(rows[interaction.product])
        histories = list(users.values())
        texts = [
            f"{product_text(product)} {' '.join(product.attributes.values())}"
            for product in domain.products
        ]
        vectors = TfidfVectorizer(analyzer=tokens).fit_transform(texts).toarray()
        popular = np.bincount(np.concatenate(histories[:60]), minlength=160).astype(float)
        for history in histories[60:]:
            seen, later = history[:10], history[10:]
            for name, scores in (
                ("popular", popular.copy()),
                ("content", vectors @ vectors[seen].mean(0)),
            ):
                scores[seen] = -np.inf
                top = set(np.argsort(-scores)[:10])
                hits[name] += [row in top for row in later]
    chance = 10 / 150
    for values in hits.values():
        assert chance + 0.03 < np.mean(values) < 0.3


@given(
    name=st.sampled_from([c.name for v in vocabularies().values() for c in v.categories]),
    colour=st.sampled_from(list(COLOURS)),
    material=st.sampled_from(list(MATERIALS)),
    noise=st.floats(0, 1),
    seed=st.integers(0, 100),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_pictures(name: str, colour: str, material: str, noise: float, seed: int) -> None:
    """Would catch a category without a drawing, and noise that is there at 0 or lacking above."""
    picture = render(name, colour, material, noise, np.random.default_rng(seed))
    assert picture.shape == (32, 32, 3) and picture.std() > 5
    clean = [render(name, colour, material, 0.0, np.random.default_rng(k)) for k in (seed, 7)]
    assert np.array_equal(clean[0], clean[1])
    if noise > 0.1:
        assert not np.array_equal(picture, clean[0])


def test_no_two_drawings_are_alike() -> None:
    """Would catch two categories with one silhouette."""
    names = [c.name for v in vocabularies().values() for c in v.categories]
    rng = np.random.default_rng(0)
    drawn = {render(name, "red", "cotton", 0.0, rng).tobytes() for name in names}
    assert len(names) == len(set(names)) == len(drawn) == 80


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shared", 1.5),
        ("chinese", -0.1),
        ("seed", -1),
        ("domains", ("cars",)),
        ("domains", ()),
        ("categories", 9),
        ("private_attributes", 3),
        ("private_sentiment", 0),
        ("interactions", (5, 4)),
        ("interactions", (1, 1000)),
    ],
)
def test_bad_settings_are_refused(field: str, value: object) -> None:
    """Would catch a knob out of range that is taken silently; the message names the knob."""
    with pytest.raises(ValueError, match=field):
        BazaarSettings(**{field: value})  # pyright: ignore
