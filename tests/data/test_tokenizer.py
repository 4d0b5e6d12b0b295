"""The tokenizer: nothing lost, offsets true to the text as given, files whole."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.data.tokenizer import (
    CLS,
    MASK,
    PAD,
    SEP,
    UNK,
    Encoded,
    Tokenizer,
    TokenizerError,
)

CORPUS = [
    "The phone is good, the battery is better; charges in 20 minutes!",
    "Good phone. Good price - would buy this phone again and again.",
    "这个手机很好，电池也很好，物流很快。",
    "手机质量很好，价格便宜，值得购买！",
    "iPhone手机壳 looks good 很好看",
    "the water heater heats the water quickly, 热水器加热很快",
] * 3
TOKENIZER = Tokenizer.train(CORPUS, 400)
LENGTH = 48

# Characters whose normal form does not depend on their neighbours, of every kind that matters.
LONE = st.text(
    st.one_of(
        st.sampled_from("手机很好电池热水器𠮷龘罕見字ＡＢｃ１２，。！ﬁ①㎏é½ß🙂👍Ω한글каñ"),
        st.characters(min_codepoint=32, max_codepoint=126),
    ),
    max_size=40,
)
# What Unicode 3.2 had: of later characters, libraries of different years have different forms.
ANY = st.text(
    st.characters(exclude_categories=("Cs", "Co")).filter(
        lambda char: unicodedata.ucd_3_2_0.category(char) != "Cn"
    ),
    max_size=40,
)


def normal(text: str) -> str:
    return "".join(char.lower() for char in unicodedata.normalize("NFKC", text))


def squeezed(text: str) -> str:
    """What the tokens should spell: the normal form less its white space."""
    return "".join(normal(text).split())


def spelled(tokens: np.ndarray) -> bytes:
    """The bytes that tokens stand for, read from the saved vocabulary, not from `decode`."""
    names = {id: name for name, id in TOKENIZER._core.get_vocab().items()}
    parts = [
        bytes([token - 5]) if 5 <= token < 261 else names[token].encode()
        for token in tokens.tolist()
        if token not in (PAD, CLS, SEP)
    ]
    return b"".join(parts)


def row(encoded: Encoded, at: int) -> Encoded:
    return Encoded(*(part[at] for part in encoded))


@given(ANY)
@settings(max_examples=150, deadline=None)
def test_no_character_is_lost_and_none_unknown(text):
    """Fault: a character outside of the vocabulary becomes UNK, or vanishes."""
    tokens = TOKENIZER.encode([text], 1200).tokens[0]
    assert tokens.max() < TOKENIZER.size
    assert UNK not in tokens and MASK not in tokens
    # Python's white space has four control characters more than Unicode's; they may stay.
    got = spelled(tokens).decode()
    assert "".join(got.split()) == squeezed(text)


@given(LONE)
@settings(max_examples=150, deadline=None)
def test_offsets_slice_the_text_as_given(text):
    """Fault: offsets count bytes, or refer to the lower-cased or normalised text."""
    encoded = row(TOKENIZER.encode([text], 400), 0)
    for token, (start, end) in zip(encoded.tokens, encoded.offsets, strict=True):
        if token in (PAD, CLS):
            assert (start, end) == (-1, -1)
            continue
        assert 0 <= start < end <= len(text)
        assert spelled(np.array([token])) in normal(text[start:end]).encode()
    kept = encoded.offsets[encoded.words >= 0]
    assert (np.diff(kept, axis=0) >= 0).all()


@given(st.lists(ANY, max_size=5), st.integers(2, 40))
@settings(max_examples=100, deadline=None)
def test_rows_are_framed_and_words_rise(texts, length):
    """Fault: padding in the middle, a word index that falls, skips, or stands on a special."""
    encoded = TOKENIZER.encode(texts, length)
    assert [part.dtype for part in encoded] == [np.int32] * 3
    assert encoded.tokens.shape == encoded.words.shape == (len(texts), length)
    assert encoded.offsets.shape == (len(texts), length, 2)
    for at in range(len(texts)):
        tokens, words, offsets = row(encoded, at)
        used = (tokens != PAD).sum()
        assert tokens[0] == CLS and (tokens[1:used] >= 5).all() and (tokens[used:] == PAD).all()
        assert ((words >= 0) == (tokens >= 5)).all()
        assert ((offsets >= 0).all(-1) == (tokens >= 5)).all()
        steps = np.diff(np.concatenate([[-1], words[1:used]]))
        assert ((steps == 0) | (steps == 1)).all()


@given(st.lists(ANY, min_size=1, max_size=4), st.integers(2, 20))
@settings(max_examples=60, deadline=None)
def test_shorter_is_a_prefix_and_rows_are_independent(texts, length):
    """Fault: where a text is cut, or what stands beside it, changes its other tokens or words."""
    short, long = TOKENIZER.encode(texts, length), TOKENIZER.encode(texts, 1200)
    for at, text in enumerate(texts):
        alone = TOKENIZER.encode([text], length)
        for cut, whole, single in zip(short, long, alone, strict=True):
            np.testing.assert_array_equal(cut[at], whole[at, :length])
            np.testing.assert_array_equal(cut[at], single[0])


@pytest.mark.parametrize("length", range(2, 16))
def test_a_cut_inside_a_character_keeps_the_words(length):
    """Fault: the first byte of a spelled ideograph, cut from the rest, joins the word before."""
    texts = ["手𠮷龘龘a", "龘ab", "ж龘"]
    np.testing.assert_array_equal(
        TOKENIZER.encode(texts, length).words, TOKENIZER.encode(texts, 40).words[:, :length]
    )


def words_of(text: str) -> list[str]:
    """Slices of the text by word index."""
    encoded = row(TOKENIZER.encode([text], 100), 0)
    spans = {}
    for word, (start, end) in zip(encoded.words.tolist(), encoded.offsets.tolist(), strict=True):
        if word >= 0:
            first = spans.get(word, (start, end))[0]
            spans[word] = (first, end)
    return [text[start:end] for start, end in spans.values()]


def test_a_latin_word_is_one_word_and_a_chinese_piece_too():
    """Fault: whole-word masking would hide a Chinese sentence at once, or half of a word."""
    assert words_of("Unseenword, GOOD-value 128gb!") == [
        "Unseenword", ",", "GOOD", "-", "value", "128gb", "!",
    ]  # fmt: skip
    assert words_of("买iPhone手机很好") == ["买", "iPhone", *words_of("手机很好")]
    assert len(words_of("手机电池")) >= 2
    # Ideographs that are spelled in bytes: each is a word, apart from its neighbours.
    assert words_of("𠮷龘龘abc") == ["𠮷", "龘", "龘", "abc"]
    assert words_of("手龘机")[-2:] == ["龘", "机"]


def test_frequent_words_are_single_tokens():
    """Fault: merges were not learned, or not applied, so that everything is spelled out."""
    for text in ("phone", "good", "很好", "手机"):
        assert (TOKENIZER.encode([text], 10).tokens[0] >= 261).sum() == 1


def test_case_and_width_make_no_difference():
    """Fault: the normaliser is missing from encoding."""
    plain, loud = TOKENIZER.encode(["good phone!", "ＧＯＯＤ Phone！"], 20).tokens
    np.testing.assert_array_equal(plain, loud)


def test_names_of_specials_in_a_text_are_plain_text():
    """Fault: a review that says "[MASK]" or "<0x41>" injects a special token."""
    tokens = TOKENIZER.encode(["[MASK] [CLS] <0x41> [PAD]"], 60).tokens[0]
    assert not np.isin(tokens[1:], (UNK, CLS, SEP, MASK)).any()
    assert spelled(tokens).decode() == "[mask][cls]<0x41>[pad]"


@pytest.mark.slow
@given(st.lists(st.tuples(ANY, ANY), max_size=4), st.integers(4, 60))
@settings(max_examples=100, deadline=None)
def test_pairs(pairs, length):
    """Fault: a pair out of order, the question uncut, or offsets that point into the question."""
    questions, texts = [q for q, _ in pairs], [t for _, t in pairs]
    windows = TOKENIZER.encode_pairs(questions, texts, length)
    encoded = Encoded(*(part[:, 0] for part in windows))
    first = TOKENIZER.encode(questions, length // 3 + 1)
    second = TOKENIZER.encode(texts, length)
    for at in range(len(pairs)):
        tokens, words, offsets = row(encoded, at)
        question = first.tokens[at][first.tokens[at] != PAD]
        split = len(question)
        text = second.tokens[at][1:][: length - split - 1]
        np.testing.assert_array_equal(tokens[:split], question)
        assert tokens[split] == SEP and (tokens == SEP).sum() == 1
        np.testing.assert_array_equal(tokens[split + 1 :], text)
        np.testing.assert_array_equal(offsets[: split + 1], -1)
        expected = second.offsets[at][1:][: length - split - 1]
        np.testing.assert_array_equal(offsets[split + 1 :], expected)
        assert ((words >= 0) == (tokens >= 5)).all()
        kept = words[words >= 0]
        assert kept.size == 0 or (kept[0] == 0 and np.isin(np.diff(kept), (0, 1)).all())
        if split > 1 and text.size and text[0] != PAD:
            assert words[split + 1] == words[split - 1] + 1


@given(st.lists(st.tuples(ANY, ANY), min_size=1, max_size=3), st.integers(4, 30), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_text_of_any_length_is_read_whole_in_windows(pairs, length, times):
    """Faults: a token of a long text is in no window or in the wrong place, a window lacks the
    question, neighbours do not overlap, a short text has further windows, words skip."""
    questions, texts = [q for q, _ in pairs], [t * times for _, t in pairs]
    windows = TOKENIZER.encode_pairs(questions, texts, length)
    whole = TOKENIZER.encode(texts, 5000)
    for at in range(len(pairs)):
        every, alone = whole.tokens[at][whole.tokens[at] > MASK], None
        spans = whole.offsets[at][whole.tokens[at] > MASK]
        reached = begin = 0
        for tokens, words, offsets in zip(*(part[at] for part in windows), strict=True):
            if (tokens == PAD).all():
                assert reached == len(every) and (words == -1).all() and (offsets == -1).all()
                continue
            prompt = tokens[: np.flatnonzero(tokens == SEP)[0] + 1]
            alone = prompt if alone is None else alone
            np.testing.assert_array_equal(prompt, alone)
            room = length - len(prompt)
            if reached:
                assert reached < len(every)
                begin += room - room // 2
            text = tokens[len(prompt) :][tokens[len(prompt) :] != PAD]
            np.testing.assert_array_equal(text, every[begin : begin + room])
            shown = offsets[len(prompt) : len(prompt) + len(text)]
            np.testing.assert_array_equal(shown, spans[begin : begin + room])
            kept = words[words >= 0]
            assert kept.size == 0 or (kept[0] == 0 and np.isin(np.diff(kept), (0, 1)).all())
            reached = begin + len(text)
        assert reached == len(every)


# Characters that NFKC composes with, or orders by, those beside them.
MEETING = st.lists(
    st.sampled_from(
        [*"aeox .1", *"\u0301\u0308\u0323\u0327\u0344\u0338", *"ﾊｶﾞﾟかは\u3099\u309a", *"ﬁﬃ㌔½①"]
        + [*"\u1112\u1161\u11ab가\u09c7\u09be\u0dd9\u0dcf\u0dca\u1025\u102e", *"好𠮷ＡİΣς"]
        + ["👨\u200d👩\u200d👧", "👍🏽", "🇫🇷", "❤\ufe0f", "\u200b", "¨", "ẛ\u0323"]
    ),
    max_size=14,
).map("".join)


@given(MEETING | ANY, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD", None]))
@settings(max_examples=300, deadline=None)
def test_offsets_are_into_the_text_as_given_whatever_its_form(text, form):
    """Faults: an accent, a voicing mark or a jamo that NFKC joins to the letter before it is in
    no span, so that spans behind it slip or end too soon; a ligature is cut."""
    text = text if form is None else unicodedata.normalize(form, text)
    encoded = row(TOKENIZER.encode([text], 400), 0)
    spans = sorted({tuple(map(int, span)) for span in encoded.offsets[encoded.words >= 0]})
    covered = np.zeros(len(text), bool)
    for start, end in spans:
        assert 0 <= start < end <= len(text)
        covered[start:end] = True
    lost = "".join(char for char, there in zip(text, covered, strict=True) if not there)
    assert not squeezed(lost).strip("".join(map(chr, range(28, 32))))
    # Spans cut the text where its normal form may be cut.
    parts = [normal(text[start:end]) for start, end in spans if covered[start]]
    if all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False)):
        assert "".join("".join(parts).split()) == squeezed(text)


@pytest.mark.parametrize(
    "text, part",
    [
        (unicodedata.normalize("NFD", "Un très bon café."), unicodedata.normalize("NFD", "café")),
        ("音はﾊﾞｽです", "ﾊﾞｽ"),
        (unicodedata.normalize("NFD", "한글 좋다"), unicodedata.normalize("NFD", "한글")),
        ("a ﬁne day", "ﬁne"),
        ("so 👨\u200d👩\u200d👧 ok", "👨\u200d👩\u200d👧"),
        ("very 👍🏽 good", "👍🏽"),
    ],
)
def test_a_word_of_decomposed_text_ends_where_it_ends(text, part):
    """Fault: the span of its tokens is shorter than the word by its accents."""
    start = text.index(part)
    offsets = TOKENIZER.encode([text], 100).offsets[0]
    inside = offsets[(offsets[:, 1] > start) & (offsets[:, 0] < start + len(part))]
    assert (inside[0, 0], inside[-1, 1]) == (start, start + len(part))


def test_more_texts_than_one_batch(monkeypatch):
    """Fault: rows of a later batch land on those of an earlier one."""
    whole = TOKENIZER.encode(CORPUS, 20)
    pairs = TOKENIZER.encode_pairs(CORPUS[::-1], CORPUS, 30)
    monkeypatch.setattr("metaguide.data.tokenizer._TEXTS_AT_ONCE", 5)
    for a, b in zip(whole, TOKENIZER.encode(CORPUS, 20), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(pairs, TOKENIZER.encode_pairs(CORPUS[::-1], CORPUS, 30), strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_is_deterministic_and_blind_to_order(tmp_path):
    """Fault: hash order or ties among rare characters choose the vocabulary."""
    texts = [*CORPUS, *(chr(code) * 2 for code in range(0x5000, 0x5200))]
    for name, order in (("a", texts), ("b", texts), ("c", texts[::-1])):
        Tokenizer.train(order, 400).save(tmp_path / name)
    contents = [(tmp_path / name).read_bytes() for name in "abc"]
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("size", [270, 300, 2000])
def test_size_bounds_the_ids(size):
    """Fault: the reserved ids come on top of the size asked for."""
    tokenizer = Tokenizer.train(iter(CORPUS), size)
    assert tokenizer.size <= size
    assert tokenizer.encode(CORPUS, LENGTH).tokens.max() == tokenizer.size - 1 or size == 2000


def test_decode_reads_well():
    """Fault: blanks inside of words or Chinese, bytes not joined, specials shown."""
    for text in ("good phone zyxw手机很好𠮷", "very good,很好"):
        tokens, words, _ = row(TOKENIZER.encode([text], 60), 0)
        assert TOKENIZER.decode(tokens, words) == text
    ids = TOKENIZER.encode(["good phone, 很好𠮷"], 60).tokens[0]
    assert TOKENIZER.decode(ids) == "good phone,很好𠮷"
    assert TOKENIZER.decode([CLS, *ids[1:2], MASK]) == "good[MASK]"
    assert TOKENIZER.decode([]) == ""


def test_a_file_gives_the_same_tokenizer(tmp_path):
    """Fault: the saved file forgets byte fallback, the normaliser or the pre-tokens."""
    TOKENIZER.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    texts = [*CORPUS, "𠮷 unseen ＷＯＲＤＳ [MASK] é"]
    for a, b in zip(TOKENIZER.encode(texts, LENGTH), again.encode(texts, LENGTH), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.size == TOKENIZER.size
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    """Fault: a half-written file under the final name, or a temporary one left behind."""
    path = tmp_path / "tokenizer.json"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        TOKENIZER.save(path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_bad_files_are_named(tmp_path):
    """Fault: a library's panic instead of one error that names the file and the fix."""
    path = tmp_path / "tokenizer.json"
    with pytest.raises(TokenizerError, match="tokenizer.json: there is no tokenizer.*train"):
        Tokenizer.load(path)
    TOKENIZER.save(path)
    whole = path.read_text(encoding="utf-8")
    other = json.loads(whole)
    other["model"]["vocab"] = {
        name: {0: 1, 1: 0}.get(id, id) for name, id in other["model"]["vocab"].items()
    }
    gap = json.loads(whole)
    gap["model"]["vocab"]["unheard"] = TOKENIZER.size + 7
    damaged = (whole[: len(whole) // 2], "", "{}", "[1]", json.dumps(other), json.dumps(gap))
    for content in damaged:
        path.write_text(content, encoding="utf-8")
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: .*train"):
            Tokenizer.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a readable"):
        Tokenizer.load(path)


def test_bad_arguments():
    """Fault: a bad argument is taken, or fails far from its cause."""
    with pytest.raises(TokenizerError, match="text 1 has half of a surrogate pair at character 2"):
        TOKENIZER.encode(["fine", "ab\ud800"], 8)
    with pytest.raises(TokenizerError, match="no text"):
        Tokenizer.train([], 400)
    with pytest.raises(ValueError, match="size 200 is too small"):
        Tokenizer.train(CORPUS, 200)
    with pytest.raises(ValueError, match="length 1 is too short"):
        TOKENIZER.encode(["a"], 1)
    with pytest.raises(ValueError, match="length 3 is too short"):
        TOKENIZER.encode_pairs(["a"], ["b"], 3)
    with pytest.raises(ValueError, match="2 questions do not pair with 1 texts"):
        TOKENIZER.encode_pairs(["a", "b"], ["c"], 9)
