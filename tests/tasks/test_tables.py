import dataclasses
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.data.catalogue import (
    CatalogueError,
    Domain,
    Interaction,
    Product,
    Question,
    Review,
)
from metaguide.data.encoding import Lengths, TextReader, unlabelled
from metaguide.data.texts import product_text
from metaguide.data.tokenizer import CLS, MASK, PAD, SEP, Tokenizer
from metaguide.scoring import answer_scores
from metaguide.tasks import TASKS, Reading, classification, question_answering, sentiment
from metaguide.tasks.labelled import table_of
from metaguide.tasks.question_answering import question_rows
from metaguide.tasks.recommendation import recommendation_table

LENGTHS = Lengths(text=32, pair=40, name=6)


def classification_table(domains, tokenizer, lengths, images, always=None):
    reading = Reading(TextReader(tokenizer), lengths, images, 1)
    return table_of(classification.LABELLING, domains, reading, always or {}, False)


def sentiment_table(domains, tokenizer, lengths):
    reading = Reading(TextReader(tokenizer), lengths, False, 1)
    return table_of(sentiment.LABELLING, domains, reading, {}, False)


def questions_table(domains, tokenizer, lengths, max_answer_tokens=None):
    reading = Reading(TextReader(tokenizer), lengths, False, max_answer_tokens or 1)
    return table_of(
        question_answering.LABELLING, domains, reading, {}, max_answer_tokens is not None
    )


def picture(shade):
    return np.full((32, 32, 3), shade, np.uint8)


PHONES = Domain(
    "phones",
    products=(
        Product("p1", "Aster phone", "six inches", "phone", {"colour": "red", "memory": "8 gb"}),
        Product("p2", "Birch case", "", "case", {"colour": "blue"}, picture(2)),
        Product("p3", "Cedar phone", "", "phone", image=picture(3)),
        Product("p4", "Dahlia box"),
    ),
    reviews=(
        Review("r1", "it holds a day", stars=5.0),
        Review("r2", "it broke", stars=1.0),
        Review("r3", "so so", stars=3.0),
        Review("r4", "it broke again", stars=2.0),
    ),
    questions=(
        Question("q1", "how long?", "it holds a day and a half", (9, 25)),
        Question("q2", "what colour?", "it holds a day and a half"),
    ),
    interactions=(
        Interaction("u2", "p3", 1.0),
        Interaction("u1", "p2", 5.0),
        Interaction("u1", "p1", 2.0),
        Interaction("u1", "p2", 3.0),
        Interaction("u3", "p4", 1.0),
        Interaction("u3", "p4", 2.0),
        Interaction("u2", "p4", 0.0),
        Interaction("u1", "p4", 9.0),
    ),
)
BOOKS = Domain(
    "books",
    products=(Product("b1", "Elm 书", category="novel"), Product("b2", "Fir", category="map")),
    reviews=(
        Review("r1", "很好看", sentiment="positive"),
        Review("r2", "dull", sentiment="negative"),
    ),
    questions=(Question("q1", "谁?", "作者是 Elm", (4, 7)),),
    interactions=(Interaction("u9", "b2", 1.0), Interaction("u9", "b1", 2.0)),
)
BOTH = (PHONES, BOOKS)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [product_text(product) for domain in BOTH for product in domain.products]
    texts += [review.text for domain in BOTH for review in domain.reviews]
    texts += [question.text for domain in BOTH for question in domain.questions]
    return Tokenizer.train(texts + ["phone case novel map how long?"], 400)


def letters(text):
    return "".join(text.lower().split())


def decoded(tokenizer, row):
    return letters(tokenizer.decode(row))


def examples(table, domain):
    """(class, row) of every example of a domain."""
    for one, count in enumerate(table["count"][domain]):
        for row in table["members"][domain, one, :count]:
            yield one, row


def test_a_product_is_read_whole_and_nothing_twice():
    """Faults: the text of a product lacks a part; an attribute that the prose names is repeated."""
    red = Product("p", "Aster phone", "a RED one", "phone", {"colour": "red", "memory": "8 gb"})
    assert product_text(red) == "Aster phone a RED one memory 8 gb"
    assert product_text(Product("p", "Aster")) == "Aster"
    assert product_text(Product("p", "Aster", attributes={"colour": "red"})) == "Aster colour red"


@pytest.mark.parametrize(
    "title, key, value, named",
    [
        ("Covered grill, shredded steel", "colour", "red", False),
        ("A red grill", "colour", "Red", True),
        ("Infra-red grill", "colour", "red", False),
        ("Red-hot grill", "colour", "red", False),
        ("Colour: red.", "colour", "red", True),
        ("Laptop 128 GB", "ram", "8", False),
        ("Laptop with 8 ports", "ram", "8", False),
        ("Laptop, 8 GB of RAM", "ram", "8", True),
        ("RAM 128 GB", "ram", "8", False),
        ("Laptop 128 GB", "ram", "8 GB", False),
        ("Laptop 8 GB", "ram", "8 gb", True),
        ("Weighs 1.5 kg", "weight", "5 kg", False),
        ("Weighs 5.1 kg", "ram", "5", False),
        ("USB-C cable", "plug", "C", False),
        ("红烧肉", "颜色", "红", False),
        ("红色手机", "颜色", "红色", True),
        ("iPhone手机壳", "for", "iphone", True),
        ("Cafe\u0301 table", "style", "café", True),
        ("A small  oak\ttable", "wood", "oak table", True),
        ("Oak", "note", "", False),
    ],
)
def test_an_attribute_is_named_by_whole_words_alone(title, key, value, named):
    """Fault: what stands inside another word or number, or counts something else, is taken for the
    attribute, and the product loses it."""
    text = product_text(Product("1", title, attributes={key: value}))
    assert text == (title if named else f"{title} {key} {value}")


def test_products_come_back_out_of_the_table(tokenizer):
    """Faults: rows and classes are of different products once those without category are left
    out; a class has the name of another; the category is in the text; padding counts."""
    table = classification_table(BOTH, tokenizer, LENGTHS, images=True)
    tokens = table["rows"]["tokens"]
    assert tokens.shape[:2] == (2, 3)
    assert (tokens[..., -1] != PAD).any()  # no longer than the longest text
    for number, domain in enumerate(BOTH):
        kept = [product for product in domain.products if product.category]
        found = dict((row, one) for one, row in examples(table, number))
        assert sorted(found) == list(range(len(kept)))
        for row, product in enumerate(kept):
            fields = {name: leaf[number, row] for name, leaf in table["rows"].items()}
            assert decoded(tokenizer, fields["tokens"]) == letters(product_text(product))
            name = table["names"]["tokens"][number, found[row]]
            assert decoded(tokenizer, name) == product.category
            assert fields["has_image"] == (product.image is not None)
            shade = 0 if product.image is None else product.image[0, 0, 0]
            assert (fields["image"] == shade).all() and fields["image"].dtype == np.uint8
    tokens = table["rows"]["tokens"]
    assert tokens[1, 2:].max() == 0 and tokens.dtype == np.int32
    texts = [product_text(product) for product in PHONES.products[:3]]
    whole = tokenizer.encode(texts, LENGTHS.text).tokens
    np.testing.assert_array_equal(tokens[0], whole[:, : tokens.shape[-1]])
    assert not whole[:, tokens.shape[-1] :].any()
    assert set(classification_table(BOTH, tokenizer, LENGTHS, images=False)["rows"]) == {"tokens"}


def test_categories_that_are_always_there(tokenizer):
    """Faults: the flag is of another class; a category that does not exist is passed over."""
    always = {"phones": ["phone"]}
    table = classification_table(BOTH, tokenizer, LENGTHS, False, always)
    np.testing.assert_array_equal(table["priority"], [[False, True], [False, False]])
    with pytest.raises(CatalogueError, match="phones: no product of category 'tv'.* case, phone"):
        classification_table(BOTH, tokenizer, LENGTHS, False, {"phones": ["tv"]})


def test_the_names_that_training_has_seen_are_marked(tokenizer):
    """Faults: a held-out domain's class counts as known, or a known one as new, in an episode or
    where the guide is served; a class is known by its number."""
    reading = Reading(TextReader(tokenizer), LENGTHS, False, 1, frozenset({"phone", "desk"}))
    table = table_of(classification.LABELLING, BOTH, reading, {}, False)
    for domain, known in zip(BOTH, table["known_names"], strict=True):
        classes = classification.categories_of(domain.products)
        expected = [one in ("phone", "desk") for one in classes]
        assert known.tolist()[: len(classes)] == expected
        context = classification.LABELLING.context(classes, reading)
        assert context["known_names"].tolist() == expected


def test_reviews_come_back_out_of_the_table(tokenizer):
    """Faults: positive and negative are swapped, three stars have a class, stars are of another
    row or are made up for a review that has none."""
    table = sentiment_table(BOTH, tokenizer, LENGTHS)
    for number, domain in enumerate(BOTH):
        kept = [review for review in domain.reviews if review.stars != 3]
        found = dict((row, one) for one, row in examples(table, number))
        assert len(found) == len(kept)
        for row, review in enumerate(kept):
            assert decoded(tokenizer, table["rows"]["tokens"][number, row]) == letters(review.text)
            assert found[row] == review.label
            assert table["rows"]["stars"][number, row] == (review.stars or 0)
    np.testing.assert_array_equal(table["count"], [[2, 1], [1, 1]])


def test_a_domain_of_one_sentiment_has_two_classes(tokenizer):
    """Fault: with positive reviews alone, or negative ones alone, a class is missing."""
    for stars in (1.0, 5.0):
        domain = Domain("d", reviews=(Review("r", "so", stars=stars),))
        table = sentiment_table((domain,), tokenizer, LENGTHS)
        np.testing.assert_array_equal(table["count"], [[stars == 1, stars == 5]])


def test_answers_come_back_out_of_the_table(tokenizer):
    """Faults: a span is off by one or counted in another text; no answer is not position 0."""
    table = questions_table(BOTH, tokenizer, LENGTHS)
    np.testing.assert_array_equal(table["count"], [[2], [1]])
    for number, domain in enumerate(BOTH):
        for row, question in enumerate(domain.questions):
            fields = {name: leaf[number, row] for name, leaf in table["rows"].items()}
            whole = letters(question.question) + letters(question.text)
            assert decoded(tokenizer, fields["tokens"]) == whole
            if question.answer is None:
                assert fields["start"] == fields["end"] == 0
                continue
            assert fields["start"] > np.flatnonzero(fields["tokens"] == SEP)[0]
            span = fields["tokens"][fields["start"] : fields["end"] + 1]
            assert decoded(tokenizer, span) == letters(question.text[slice(*question.answer)])


@settings(max_examples=60, deadline=None)
@given(text=st.text("ab 书,É\n", min_size=1, max_size=25).filter(str.strip), data=st.data())
def test_any_answer_is_covered_by_its_tokens(tokenizer, text, data):
    """Faults: the span misses a character of the answer, or holds a token that has none of it."""
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    if not text[start:end].strip():
        return
    domain = Domain("d", questions=(Question("q", "a?", text, (start, end)),))
    rows = questions_table((domain,), tokenizer, Lengths(4, 120, 4))["rows"]
    encoded = tokenizer.encode_pairs(["a?"], [text], 120)
    spans = [tuple(map(int, span)) for span in encoded.offsets[0, 0]]
    covering = [i for i, (a, b) in enumerate(spans) if a >= 0 and b > start and a < end]
    assert list(range(rows["start"][0, 0], rows["end"][0, 0] + 1)) == covering
    covered = {place for i in covering for place in range(*spans[i])}
    assert {place for place in range(start, end) if text[place].strip()} <= covered


def test_an_answer_too_long_for_a_window_is_left_out_and_named(tokenizer):
    """Fault: an answer that is cut off is trained on as its first half, or as no answer."""
    with pytest.warns(UserWarning, match="phones: 1 of 2 questions.*12 tokens.*'q1'.*shorter"):
        table = questions_table(BOTH, tokenizer, LENGTHS._replace(pair=12))
    np.testing.assert_array_equal(table["count"], [[1], [1]])
    assert not table["rows"]["start"][0].any()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_answer_in_decomposed_text_is_its_own_tokens(tokenizer, form):
    """Fault: the accent behind the answer is in no token, and the whole domain is refused."""
    text, said = (unicodedata.normalize(form, part) for part in ("Un très bon café.", "café"))
    start = text.index(said)
    question = Question("q", "what?", text, (start, start + len(said)))
    rows = question_rows([question], tokenizer, 40, "d")
    last = tokenizer.encode_pairs(["what?"], [text], 40).offsets[0, 0, rows["end"][0]]
    assert last[1] == start + len(said)


@pytest.mark.parametrize("text, answer", [("a  b", (1, 3)), ("a\u3000b", (1, 2))])
def test_a_blank_answer_is_named_as_that(tokenizer, text, answer):
    """Fault: it is said to lie beyond the tokens kept."""
    domain = Domain("shop", questions=(Question("q7", "what?", text, answer),))
    with pytest.raises(CatalogueError, match="shop, question 'q7'.*is blank"):
        questions_table((domain,), tokenizer, LENGTHS)


def test_an_answer_that_starts_within_the_bytes_of_a_character_says_that_character(tokenizer):
    """Fault: the very string of the answer is wrong, since a byte of its first character is not
    among its tokens."""
    question = Question("q", "how?", "电池好耐用", (2, 5))
    rows = question_rows([question], tokenizer, 40, "d", max_answer_tokens=9)
    first, last = rows["start"][0], rows["end"][0]
    assert last - first == 8  # three characters in bytes
    for start in (first, first + 1, first + 2):
        assert rows["em"][0, start, last - start] and rows["f1"][0, start, last - start] == 1
    assert not rows["em"][0, first + 3, last - first - 3]
    assert rows["f1"][0, first + 3, last - first - 3] == pytest.approx(4 / 5)


def test_an_answer_far_behind_is_in_a_window(tokenizer):
    """Fault: a passage longer than the tokens kept makes the domain an error."""
    text = "it broke again. " * 60 + "it holds a day."
    domain = Domain(
        "d", questions=(Question("q", "how long?", text, (len(text) - 6, len(text) - 1)),)
    )
    table = questions_table(
        (*BOTH, domain), tokenizer, LENGTHS._replace(pair=20), max_answer_tokens=4
    )
    rows = {name: leaf[2, 0] for name, leaf in table["rows"].items()}
    assert rows["tokens"].ndim == 2 and table["rows"]["tokens"].shape[:2] == (3, 2)
    offsets = tokenizer.encode_pairs(["how long?"], [text], 20).offsets[0]
    held = np.flatnonzero(rows["start"])
    assert len(held)
    for window in held:
        first, last = rows["start"][window], rows["end"][window]
        assert (offsets[window, first, 0], offsets[window, last, 1]) == (
            len(text) - 6,
            len(text) - 1,
        )
        if last - first < 4:
            assert rows["em"][window, first, last - first]
            assert rows["f1"][window, first, last - first] == 1
    # The short ones beside it are what they are alone.
    alone = questions_table(BOTH, tokenizer, LENGTHS._replace(pair=20), max_answer_tokens=4)["rows"]
    size = alone["tokens"].shape[-1]
    np.testing.assert_array_equal(table["rows"]["tokens"][:2, :, 0, :size], alone["tokens"])
    np.testing.assert_array_equal(table["rows"]["start"][:2, :, 0], alone["start"])


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(12, 40))
def test_the_scores_of_what_can_be_said_are_those_of_its_text(tokenizer, data, length):
    """Faults: a score stands at another position, length or window than the tokens it is of; only
    one of several answers counts."""
    text = data.draw(st.text("ab 好耐,é\u0301", min_size=1, max_size=40).filter(str.strip))
    spans = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(sorted).map(tuple)
    spans = spans.filter(lambda span: text[slice(*span)].strip("\u0301 ,"))
    answers = data.draw(st.lists(spans, min_size=1, max_size=3)) if text.strip("\u0301 ,") else []
    first, *others = answers or [None]
    question = Question("q", "a?", text, first, others=tuple(others))
    encoded = tokenizer.encode_pairs(["a?"], [text], length)
    table = question_rows([question], tokenizer, length, "d", max_answer_tokens=3)
    em, f1 = (table[name].reshape(*encoded.tokens.shape, 3)[0] for name in ("em", "f1"))
    for window, offsets in enumerate(encoded.offsets[0]):
        for start in range(length):
            for more in range(3):
                ends = offsets[start : start + more + 1]
                if len(ends) <= more or (ends < 0).any() or not answers:
                    assert not em[window, start, more] and f1[window, start, more] == 0
                    continue
                said = text[ends[0, 0] : ends[-1, 1]]
                expected = answer_scores(said, question.golds)
                assert (em[window, start, more], f1[window, start, more]) == pytest.approx(expected)


def test_users_come_back_out_of_the_table(tokenizer):
    """Faults: products are out of the order of time, one is there twice (and so both history and
    target), a user with one product is asked about, padding is taken for product 0; popularity
    counts what users are asked for, those who are not asked, or padding; pictures are read."""
    table = recommendation_table(BOTH, Reading(TextReader(tokenizer), LENGTHS, True, 1))
    np.testing.assert_array_equal(table["users"], [2, 1])
    np.testing.assert_array_equal(table["catalogue"], [4, 2])
    np.testing.assert_array_equal(table["taken"], [[3, 2], [2, 0]])
    assert table["items"][0, 0].tolist() == [0, 1, 3]  # u1: p1 at 2, p2 at 3, p4 at 9
    assert table["items"][0, 1, :2].tolist() == [3, 2]  # u2: p4 at 0, p3 at 1
    assert table["items"][1, 0, :2].tolist() == [1, 0]
    # Taken by u1 or u2 before their last one; padding of the users and of their products is none.
    assert table["popularity"].tolist() == [[1, 1, 0, 1], [0, 1, 0, 0]]
    for number, domain in enumerate(BOTH):
        for row, product in enumerate(domain.products):
            tokens = table["products"]["tokens"][number, row]
            assert decoded(tokenizer, tokens) == letters(product_text(product))
    assert set(table["products"]) == {"tokens"}


def test_users_without_two_products_leave_an_empty_table(tokenizer):
    """Fault: a domain in which nobody took two products breaks the others."""
    lonely = dataclasses.replace(BOOKS, interactions=BOOKS.interactions[:1])
    table = recommendation_table(
        (lonely, PHONES), Reading(TextReader(tokenizer), LENGTHS, False, 1)
    )
    np.testing.assert_array_equal(table["users"], [0, 2])
    np.testing.assert_array_equal(table["taken"][1], [3, 2])


def test_self_supervision_reads_every_text_once(tokenizer):
    """Faults: a passage counts as often as it is asked about; a picture stands beside the text of
    another product; labels (category names) are read."""
    table = unlabelled(BOTH, tokenizer, LENGTHS.text)
    products = [product for domain in BOTH for product in domain.products]
    expected = {letters(product_text(product)) for product in products}
    expected |= {letters(review.text) for domain in BOTH for review in domain.reviews}
    expected |= {letters(question.text) for domain in BOTH for question in domain.questions}
    found = [decoded(tokenizer, row) for row in table["text"]["tokens"]]
    assert len(found) == len(set(found)) and set(found) == expected
    words, tokens = table["text"]["words"], table["text"]["tokens"]
    np.testing.assert_array_equal(words >= 0, tokens > MASK)
    assert (tokens[:, 0] == CLS).all() and (tokens[:, -1] == PAD).any()
    pictured = [product for product in products if product.image is not None]
    for row, product in enumerate(pictured):
        pair = table["pair"]["tokens"][row]
        assert decoded(tokenizer, pair) == letters(product_text(product))
        np.testing.assert_array_equal(table["pair"]["image"][row], product.image)
        np.testing.assert_array_equal(table["image"]["image"][row], product.image)
    assert len(table["image"]["image"]) == len(pictured)
    assert set(unlabelled((BOOKS,), tokenizer, LENGTHS.text)) == {"text"}


def test_a_kind_of_task_needs_its_own_part():
    """Fault: a domain is asked for a task of which it has no example."""
    only = {
        "classification": dataclasses.replace(PHONES, reviews=(), questions=(), interactions=()),
        "sentiment": Domain("d", reviews=PHONES.reviews),
        "questions": Domain("d", questions=PHONES.questions),
    }
    for kind, domain in only.items():
        assert [name for name, task in TASKS.items() if task.has_examples(domain)] == [kind]
    bare = Domain("d", (Product("p", "Aster"),), (Review("r", "so", stars=3.0),))
    assert not any(task.has_examples(bare) for task in TASKS.values())
    assert all(task.has_examples(PHONES) for task in TASKS.values())
