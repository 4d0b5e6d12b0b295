"""Examples that say the same are one, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.data.catalogue import Domain, Interaction, Product, Question, Review
from metaguide.data.repeats import distinct_products, distinct_reviews, without_repeats


def reviews(*texts):
    return Domain("d", reviews=tuple(Review(str(i), t, stars=5.0) for i, t in enumerate(texts)))


def kept(domain, near=1.0):
    return [review.id for review in distinct_reviews(domain, near)]


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("It is good.", "it  is GOOD", True),
        ("Caf\u00e9", "Cafe\u0301", True),
        ("很好，很快！", "很好很快", True),
        ("ＡＢＣ", "abc", True),
        ("1.5 kg", "15 kg", False),
        ("2-3 kg", "23 kg", False),
        ("good 👍", "good 👎", False),
        ("!!!", "???", False),
        ("good", "goods", False),
    ],
)
def test_texts_are_the_same_but_for_case_width_and_punctuation(one, other, same):
    """Faults: a form of Unicode hides a repeat; a decimal point or a symbol that is the whole
    difference is passed over."""
    domain = reviews(one, other)
    if not same:
        assert kept(domain) == ["0", "1"]
        return
    with pytest.warns(UserWarning, match="domain d, sentiment: 1 of 2 examples"):
        assert kept(domain) == ["0"]


@pytest.mark.filterwarnings("ignore:domain d")
@given(st.lists(st.text("ab .", max_size=3), max_size=12))
@settings(max_examples=60, deadline=None)
def test_each_content_is_kept_once_and_none_is_lost(texts):
    """Faults: a repeat is left, a content is lost, the order is another, a second pass drops."""
    domain = reviews(*texts)
    once = distinct_reviews(domain)
    contents = [("".join(r.text.replace(".", "").split()) or r.text.strip()) for r in once]
    assert len(contents) == len(set(contents))
    assert [int(r.id) for r in once] == sorted(int(r.id) for r in once)
    every = {("".join(t.replace(".", "").split()) or t.strip()) for t in texts}
    assert set(contents) == every
    again = without_repeats(domain)
    assert again.reviews == tuple(once) and without_repeats(again) == again


def test_near_repeats_are_an_option():
    """Faults: a text with another word is a repeat by default, or is none where it is asked for, or
    only if its case is the same; of a chain of near ones all but the first are lost."""
    long = "the battery holds a day and a half and the screen is as bright as it was said to be"
    domain = reviews(long, long + " ok", "quite another text about something else", long[:40])
    assert kept(domain) == ["0", "1", "2", "3"]
    with pytest.warns(UserWarning, match="1 of 4"):
        assert kept(domain, near=0.9) == ["0", "2", "3"]
    with pytest.raises(ValueError, match="near is 0"):
        kept(domain, near=0.0)
    with pytest.warns(UserWarning, match="1 of 2"):
        assert kept(reviews(long, long.upper() + "! OK"), near=0.9) == ["0"]
    asked = Domain(
        "d",
        questions=(
            Question("1", "how long does it hold?", long, (0, 3)),
            Question("2", "what is said of the screen?", long, (0, 3)),
        ),
    )
    assert without_repeats(asked, near=0.5) == asked  # other questions on one passage


def test_a_product_that_repeats_another_stays_in_the_catalogue():
    """Faults: what users took is gone with it; pictures that differ do not count; they count where
    the guide reads none."""
    red, blue = (np.full((32, 32, 3), shade, np.uint8) for shade in (1, 2))
    products = (
        Product("1", "Shirt", category="a", image=red),
        Product("2", "Shirt", category="a", image=blue),
        Product("3", "shirt", category="b", image=red),
        Product("4", "Shirt"),
    )
    domain = Domain("d", products, interactions=(Interaction("u", "3", 0.0),))
    with pytest.warns(UserWarning, match="classification: 1 of 3"):
        once = without_repeats(domain)
    assert [product.category for product in once.products] == ["a", "a", None, None]
    assert once.interactions == domain.interactions
    with pytest.warns(UserWarning, match="classification: 2 of 3"):
        assert [p.id for p in distinct_products(domain, pictures=False)] == ["1"]
