"""Where sentences end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaguide.data.sentences import sentences


@pytest.mark.parametrize(
    "whole",
    [
        "It weighs 1.5 kg in all.|It is red.",
        "It weighs .5 kg.|It is 3,5 cm. wide.|See example.com for v2.4.1 of it!",
        "Take e.g. the red one.|Dr. Smith uses approx. 5 of No. 7.|Is it good?|No.|It broke.",
        "J. Smith sells it in the U.S. market.|It has vitamin C.|It helps.",
        "It opens at 9 a.m. on Monday.|it is bad.|do not buy",
        "It is red.|It lasts!|Really?!|Wait...|What",
        'He said "it broke."|(I had paid.)|Then it went;|so did I.',
        "重1.5公斤。|很好！|真的？|「好。」|对；|是",
        "音が良い。|電池は１．５倍。|軽い｡|安い",
        "first line|second line, with 1.5 kg|third",
        "1. one line|2. Another of 12.|It ends",
        "很好.|屏幕不错",
        "so so",
    ],
)
def test_sentences_end_where_a_reader_ends_them(whole: str) -> None:
    """Faults: a decimal, an abbreviation, an initial or an address ends a sentence; a Chinese stop
    or a closing quote does not; the stop is lost or a sentence of its own."""
    parts = whole.split("|")
    text = ""
    for part in parts:
        blank = "" if not text or text[-1] in "。！？；」｡" else "\n" if "line" in text else " "
        text += ("" if text.endswith("很好.") else blank) + part
    assert [text[a:b] for a, b in sentences(text)] == parts


@pytest.mark.parametrize(
    "whole",
    [
        "房间很大，|早餐很丰富，|离地铁站很近，|服务一般，|空调有点吵",
        "房间很大 |早餐很丰富 |离地铁站很近 |服务一般般 |空调有点吵",
        "房间很大～|早餐很丰富～～|离地铁站很近，|服务一般般，|空调有点吵。|不错",
        "iPhone 15 屏幕很大，|Wi-Fi 6 速度很快，|电池用了两天还有电，|就是贵了一点点",
        "房间很大，早餐很丰富。|很好，下次还来",
    ],
)
def test_a_long_chinese_sentence_ends_at_its_commas(whole: str) -> None:
    """Faults: the answer to a question is a whole review; a short sentence is torn apart; a blank
    within a name of Latin letters ends a sentence."""
    text = whole.replace("|", "")
    assert [text[a:b] for a, b in sentences(text)] == [part.strip() for part in whole.split("|")]


@given(st.text('a1B.!? \n。；"），好', max_size=60))
def test_no_character_is_in_two_sentences_or_in_none(text: str) -> None:
    """Faults: sentences overlap, white space is in them, or a word is in none."""
    left = 0
    for begin, end in sentences(text):
        assert left <= begin < end and not text[left:begin].strip()
        assert text[begin:end] == text[begin:end].strip()
        left = end
    assert not text[left:].strip()
