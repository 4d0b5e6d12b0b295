"""What shops write in a field, as a catalogue holds it."""

import time
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaguide.data.importers import values

STARS = [
    ("4", 4.0),
    (4, 4.0),
    (4.5, 4.5),
    ("4,5", 4.5),
    ("4.5", 4.5),
    ("3 stars", 3.0),
    ("4 out of 5", 4.0),
    ("4.0 out of 5 stars", 4.0),
    ("8/10", 4.0),
    ("four", 4.0),
    ("Five stars", 5.0),
    ("四星", 4.0),
    ("★★★★☆", 4.0),
    ("⭐⭐", 2.0),
    ("⭐️⭐️⭐️", 3.0),
    ("５", 5.0),
    ("４．５", 4.5),
    ("5颗星", 5.0),
    ("五颗星", 5.0),
    ("4星级", 4.0),
    ("5点", 5.0),
    ("5つ星のうち4.0", 4.0),
    ("0.5", 1.0),
    (Decimal("4.5"), 4.5),
]


@pytest.mark.parametrize(("written", "stars"), STARS)
def test_stars_are_read_as_shops_write_them(written: object, stars: float) -> None:
    """Catches a comma, a scale or a word that is read as another number, or refused."""
    assert values.stars(written).value == stars


@pytest.mark.parametrize("written", ["", "0", 0, "6", "-1", "nan", "4 or 5", True, [4], "sehr"])
def test_what_is_no_number_of_stars_is_refused(written: object) -> None:
    """Catches an unrated 0, a rating out of range or a sentence that becomes stars."""
    with pytest.raises(ValueError, match="is .*; (write|the range)"):
        values.stars(written)


def test_a_word_of_praise_is_no_number_of_stars() -> None:
    """Catches a column of sentiments whose mend is said to be numbers."""
    for written in ("好评", "差评", "Positive"):
        with pytest.raises(ValueError, match="map the column to sentiment"):
            values.stars(written)


def test_the_best_rating_may_be_another() -> None:
    """Catches stars out of ten that are stored unscaled, or without a word."""
    assert values.stars("8", most=10.0) == (4.0, "rated out of another number, stored out of 5")
    assert values.stars("1", most=10.0).value == 1.0


SENTIMENTS = [("1", 1), (1, 1), ("+1", 1), ("pos", 1), ("Positive", 1), ("好评", 1), (True, 1)]
SENTIMENTS += [("好評", 1), ("高評価", 1), ("１", 1), ("負評", 0), ("低評価", 0), ("０", 0)]
SENTIMENTS += [("0", 0), (-1, 0), ("-1", 0), ("NEG", 0), ("差评", 0), (0.0, 0), (False, 0)]


@pytest.mark.parametrize(("written", "positive"), SENTIMENTS)
def test_sentiments_are_read_as_shops_write_them(written: object, positive: int) -> None:
    """Catches a label that is read as its opposite."""
    assert values.sentiment(written).value == ("negative", "positive")[positive]


def test_words_of_a_sentiment_replace_the_usual_ones() -> None:
    """Catches a shop's "2 is positive, 1 is negative" that is read as 1 is positive."""
    assert values.sentiment("1", positive=("2",), negative=("1",)).value == "negative"
    assert values.sentiment("2", positive=("2",), negative=("1",)).value == "positive"
    with pytest.raises(ValueError, match="say which words"):
        values.sentiment("0", positive=("2",), negative=("1",))
    known = {"positive": ("gut",), "negative": ("schlecht",)}
    assert values.sentiment("Neutral", **known).value is None
    with pytest.raises(ValueError, match="is '2'; say which words are positive"):
        values.sentiment("2")
    assert values.sentiment("neutral") == (None, "neutral, stored without a label")


MOMENT = datetime(2024, 5, 1, 12, 30, 15, tzinfo=UTC)
TIMES = [
    (MOMENT.timestamp(), "seconds"),
    (str(int(MOMENT.timestamp())), "seconds"),
    (int(MOMENT.timestamp() * 1e3), "milliseconds"),
    (str(int(MOMENT.timestamp() * 1e6)), "microseconds"),
    ("2024-05-01T12:30:15Z", "a date"),
    ("2024-05-01T14:30:15+02:00", "a date"),
    ("2024-05-01 12:30:15", "UTC"),
    (MOMENT, "a date"),
    ("2024/5/1 12:30:15", "UTC"),
    ("2024.05.01 12:30:15", "UTC"),
    ("2024年5月1日12时30分15秒", "UTC"),
    ("２０２４年５月１日　１２：３０：１５", "UTC"),
]


@pytest.mark.parametrize(("written", "remark"), TIMES)
def test_times_are_seconds(written: object, remark: str) -> None:
    """Catches milliseconds that are stored as seconds, a zone that is dropped, an unsaid unit."""
    found = values.time(written)
    assert found.value == MOMENT.timestamp()
    assert remark in found.remark


def test_a_time_without_a_zone_is_utc_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a time that is another one on a machine of another zone."""
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        assert values.time("2024-05-01 12:30:15").value == MOMENT.timestamp()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_day_begins_at_midnight() -> None:
    """Catches the days of a Parquet file that are refused."""
    assert (
        values.time(date(2024, 5, 1)).value
        == MOMENT.replace(hour=0, minute=0, second=0).timestamp()
    )


def test_other_times_need_a_pattern() -> None:
    """Catches 03/04 that is taken for April, or for March, without a word."""
    with pytest.raises(ValueError, match="or say how times are"):
        values.time("03/04/2024")
    assert (
        values.time("03/04/2024", "%d/%m/%Y").value == datetime(2024, 4, 3, tzinfo=UTC).timestamp()
    )
    assert values.time("2024/3/5 9:07").value == datetime(2024, 3, 5, 9, 7, tzinfo=UTC).timestamp()
    assert values.time("2024年3月5日").value == datetime(2024, 3, 5, tzinfo=UTC).timestamp()
    for wrong in ("2024/13/5", "2024年3月", "24/3/5", "2024/3/5 25:00"):
        with pytest.raises(ValueError, match="or say how times are"):
            values.time(wrong)
    with pytest.raises(ValueError, match="is not written as"):
        values.time("2024-05-01", "%d/%m/%Y")
    assert values.time(17) == (17.0, "a small number, kept as an order in time")
    for wrong in ("nan", "inf", 1e30, True):
        with pytest.raises(ValueError, match="write"):
            values.time(wrong)


PRICES = [
    ("0.999", "0.999"),
    ("12.99", "12.99"),
    ("$12.99", "12.99 $"),
    ("12,99 €", "12.99 €"),
    ("1.299,00 €", "1299.00 €"),
    ("$1,299.00", "1299.00 $"),
    ("1,299,000 KRW", "1299000 KRW"),
    ("CNY 35", "35 CNY"),
    ("￥35", "35 ￥"),
    ("1'299.50 CHF", "1299.50 CHF"),
    ("1 299,50 zł", "1299.50 zł"),
]


@pytest.mark.parametrize(("written", "price"), PRICES)
def test_prices_are_read_as_shops_write_them(written: str, price: str) -> None:
    """Catches a decimal comma that is taken for thousands, or the other way round."""
    assert values.price(written) == (price, "")


@pytest.mark.parametrize("written", ["from 3", "$1 - $2", "free", "1,29,9", "1.2.3,4,5", "$5 €"])
def test_what_is_no_price_is_refused(written: str) -> None:
    """Catches a range or a sentence that becomes a price."""
    with pytest.raises(ValueError, match="write one number and a currency"):
        values.price(written)


def test_a_price_that_may_be_either_says_so() -> None:
    """Catches 1,299 that is taken for thousands in silence."""
    assert values.price("1,299") == (
        "1299",
        "the three digits after the mark are read as thousands",
    )


def test_texts_lose_entities_and_marks() -> None:
    """Catches HTML in a text that is trained on, or a byte order mark that makes two texts two."""
    assert values.text("\ufeffGut &amp; g&uuml;ns\ufefftig<br />sehr ").value == (
        "Gut & günstig\nsehr"
    )
    listed = "<p>It is <b>long</b>.</p>\n<ul><li>3 kg</li><li>a<3, b>2</li></ul>"
    assert values.text(listed).value == "It is long.\n3 kg\na<3, b>2"
    twice = "&lt;div class=&quot;x&quot;&gt;So &amp; so&lt;/div&gt;"
    assert values.text(twice).value == "So & so"
    assert values.text("a<script>alert(1)</script><!-- <p> -->b <i>").value == "ab"
    address = "2 <b, and <me@example.com> <3"
    assert values.text(address).value == address
    assert values.text(12.0).value == "12"
    assert values.text(" ").value is None


def test_answers_are_found_in_their_text() -> None:
    """Catches an answer of another place, or one that the text does not hold."""
    assert values.span("day", "A day and a day.") == (
        [2, 5],
        "occurs several times in the text; the first is stored",
    )
    assert values.span("[2, 5]", "A day.").value == values.span([2, 5], "A day.").value == [2, 5]
    with pytest.raises(ValueError, match="does not hold; copy it exactly"):
        values.span("week", "A day.")
    with pytest.raises(ValueError, match="within other words alone; copy it exactly"):
        values.span("no", "Brass nozzle included.")
    assert values.span("12", "Since 2012, 1.12 m, for 12 months.").value == [24, 26]
    assert values.span("10", "It is 10m long.").value == [6, 8]
    assert values.span("light", "Moonlights.") == ([4, 9], "stands within another word")
    assert values.span("水", "防水材料。").value == [1, 2]
    typed = "So: It\u2019s not, it\u2019s 10\xa0hours."
    assert values.span("it's 10  hours", typed).value == [14, 27]
    assert values.span("\u3000", "A day.").value is None


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("Quiet &amp; good. Battery is long", "Battery"),
        ("  bad, bad &lt;3 bad<br/>bad ", "bad"),
        ("\ufeffso so", "so so"),
    ],
)
def test_a_span_counts_the_characters_of_the_text_as_it_is_written(raw: str, words: str) -> None:
    """Catches a span that is kept where its text lost entities, marks or white space before it."""
    passage = values.text(raw).value
    starts = [place for place in range(len(raw)) if raw.startswith(words, place)]
    found = [values.span([start, start + len(words)], passage, raw).value for start in starts]
    places = [place for place in range(len(passage)) if passage.startswith(words, place)]
    assert found == [[place, place + len(words)] for place in places]
    assert values.span([0, 1], passage, 12).value == [0, 1]
    for wrong in ([3, 2], [0, 99]):
        with pytest.raises(ValueError, match="no words of the text; copy them instead"):
            values.span(wrong, passage, raw)


@given(st.floats(0.01, 5) | st.integers(1, 5))
def test_any_number_of_stars_survives_writing(stars: float) -> None:
    """Catches a way of writing a number that is read as another one."""
    expected = max(1.0, float(stars))
    assert values.stars(stars).value == expected
    assert values.stars(f"{stars:.17f}").value == pytest.approx(expected)


@given(st.integers(0, 10**7), st.integers(0, 99), st.sampled_from(["", "'", " ", ",", "."]))
def test_any_price_survives_writing(whole: int, cents: int, mark: str) -> None:
    """Catches digits that are lost between marks of thousands."""
    point = "," if mark == "." else "."
    written = f"{whole:,}".replace(",", mark) + f"{point}{cents:02d} €"
    assert values.price(written).value == f"{whole}.{cents:02d} €"


@given(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())
)
def test_any_value_is_read_or_refused(value: object) -> None:
    """Catches a value that ends in another error than one with its mend."""
    for convert in (values.stars, values.sentiment, values.time, values.price, values.plain):
        try:
            convert(value)
        except ValueError as error:
            assert str(error).startswith("is ") and ";" in str(error)
