"""Subword tokens for English and Chinese: byte-pair encoding that falls back to bytes."""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, chain, count
from pathlib import Path
from typing import NamedTuple, Protocol, SupportsInt, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import models, normalizers, pre_tokenizers, trainers

from metaguide.files import MIB, atomic_write, read_regular

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_FIRST_BYTE = len(SPECIALS)
_FIRST_PIECE = _FIRST_BYTE + 256
_RESERVED = (*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)))

# Ideographs, in blocks that start and end where the second byte of UTF-8 changes.
_HAN_BLOCKS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_HAN = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in _HAN_BLOCKS) + "]")
# One pre-token: a run of ideographs, a run of other letters and digits, or one punctuation mark.
_HAN_CLASS = "".join(rf"\x{{{a:X}}}-\x{{{b:X}}}" for a, b in _HAN_BLOCKS)
_PRE_TOKEN = rf"[{_HAN_CLASS}]+|[^\s\p{{P}}\p{{S}}{_HAN_CLASS}]+|[\p{{P}}\p{{S}}]"

# Encodings hold every token as a string, so a whole corpus of them would take gigabytes.
_TEXTS_AT_ONCE = 4096


MOST = 256 * MIB
"""The most bytes of a tokenizer file."""


class TokenizerError(ValueError):
    """A tokenizer file that cannot be read, or a text that cannot be encoded."""


class Encoded(NamedTuple):
    """Texts as padded arrays.

    Attributes:
        tokens: token ids, with `PAD` after the end.
        words: number of the token's word in its row, rising from 0; -1 for specials and padding. A
            word is a run of letters and digits, a punctuation mark, or one piece of a Chinese run.
        offsets: half-open character span of the token in the original text, before lower-casing and
            NFKC. Characters that NFKC merges, such as a letter and its accent, share a span, as do
            the bytes of one character; (-1, -1) for specials, padding and questions.
    """

    tokens: Int32[np.ndarray, "*texts length"]
    words: Int32[np.ndarray, "*texts length"]
    offsets: Int32[np.ndarray, "*texts length 2"]


class Pieces(NamedTuple):
    """The tokens of many texts, concatenated, without specials.

    Attributes:
        tokens, words, offsets: as in `Encoded`.
        counts: number of tokens of each text.
    """

    tokens: Int32[np.ndarray, " tokens"]
    words: Int32[np.ndarray, " tokens"]
    offsets: Int32[np.ndarray, "tokens 2"]
    counts: np.ndarray


class Around(NamedTuple):
    """The special tokens of a row.

    Attributes:
        before: ids before every text.
        between: ids between a question and its text; the first is `SEP`.
        after: ids after every text.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]


_AROUND = Around((CLS,), (SEP,), ())

SplitFn = Callable[[Sequence[str], int | None, int], Pieces]
"""(texts, limit, first) -> each text's first `limit` tokens; `first` is the row of texts[0], for
errors."""


@runtime_checkable
class TextTokenizer(Protocol):
    """A tokenizer that a guide can read texts with: ids 0 to 4 are `SPECIALS`."""

    @property
    def size(self) -> int:
        """Number of ids; all tokens are below it."""
        ...

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        """Encode texts, cut and padded to `length` tokens; the first is `CLS`."""
        ...

    def encode_pairs(self, questions: Sequence[str], texts: Sequence[str], length: int) -> Encoded:
        """Encode questions with their texts, in as many windows as a text needs."""
        ...


class Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) of lower-cased, NFKC-normalised text.

    Runs of ideographs, runs of other letters and digits, and single punctuation marks are encoded
    separately, so that no piece spans two of them; white space only separates. A character outside
    the vocabulary is spelled in its UTF-8 bytes, so none is lost and `UNK` never occurs. Ids 0 to 4
    are the specials, the next 256 the bytes. Names of specials within a text, such as "[MASK]", are
    ordinary characters.
    """

    def __init__(self, core: tokenizers.Tokenizer):
        self._core = core
        vocabulary = core.get_vocab(with_added_tokens=True)
        pieces = sorted(vocabulary, key=vocabulary.__getitem__)
        self._han = np.array([bool(_HAN.match(piece)) for piece in pieces])
        self._bytes = [piece.encode() for piece in pieces]
        self._bytes[_FIRST_BYTE:_FIRST_PIECE] = [bytes([byte]) for byte in range(256)]

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "Tokenizer":
        """Learn a vocabulary, which does not depend on the order of the texts.

        Args:
            texts: the texts of the source domains.
            size: the most ids: 261 reserved ones, single characters (at most half of the rest;
                those seen once stay bytes), and merged pieces seen at least twice.

        Raises:
            TokenizerError: there is no text, or a text that is not valid Unicode.
            ValueError: `size` leaves no room for pieces.
        """
        if size <= _FIRST_PIECE + 1:
            raise ValueError(f"size {size} is too small: {_FIRST_PIECE} ids are reserved")
        texts = [unicodedata.normalize("NFKC", text) for text in checked_texts(texts)]
        core = _core({}, [])
        seen = Counter(chain.from_iterable(map(_normalizer().normalize_str, texts)))
        if not seen:
            raise TokenizerError("no text to train a tokenizer on")
        common = [char for char in seen if seen[char] > 1 and not char.isspace()]
        # The trainer breaks ties among rare characters at random, so they are selected here.
        common.sort(key=lambda char: (-seen[char], char))
        alphabet = sorted(common[: (size - _FIRST_PIECE) // 2])
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=list(_RESERVED),
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
        # Built again, since the trainer's special tokens would be matched inside texts.
        trained = json.loads(core.to_str())["model"]
        return cls(_core(trained["vocab"], [(left, right) for left, right in trained["merges"]]))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a tokenizer that `save` wrote.

        Raises:
            TokenizerError: the file is missing, damaged, or another kind of tokenizer.
        """
        hint = "give the file that Tokenizer.save wrote, or train the tokenizer again"
        try:
            content = read_regular(Path(path), MOST)
            core = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except FileNotFoundError as error:
            raise TokenizerError(f"{path}: there is no tokenizer here; {hint}") from error
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        # The library raises nothing more specific; panics of its Rust code are not even Exceptions.
        except BaseException as error:
            raise TokenizerError(f"{path}: not a readable tokenizer ({error}); {hint}") from error
        vocabulary = core.get_vocab(with_added_tokens=True)
        for id, name in enumerate(_RESERVED):
            if vocabulary.get(name) != id:
                raise TokenizerError(f"{path}: id {id} is not {name}; {hint}")
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise TokenizerError(f"{path}: the ids are not 0 to {len(vocabulary) - 1}; {hint}")
        return cls(core)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer as JSON of the `tokenizers` library, whole or not at all."""
        path = Path(path)
        with atomic_write(path) as file:
            file.write(self._core.to_str(pretty=True).encode())

    @property
    def core(self) -> tokenizers.Tokenizer:
        """The tokenizer of the library `tokenizers`, which puts nothing before a text."""
        return self._core

    @property
    def size(self) -> int:
        """Number of ids; all tokens are below it."""
        return len(self._bytes)

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        """Encode texts as `[CLS] text`, cut and padded to `length` tokens.

        Raises:
            TokenizerError: a text is not valid Unicode.
            ValueError: `length` is below 2.
        """
        return encode_texts(self._pieces, texts, length, _AROUND)

    def encode_pairs(self, questions: Sequence[str], texts: Sequence[str], length: int) -> Encoded:
        """Encode pairs as `[CLS] question [SEP] text`, in as many windows as the text needs.

        A question keeps its first `length // 3` tokens. A text that does not fit next to it is read
        in windows of `length` tokens, each with the question. Windows overlap: each begins half a
        window's text after the previous one, and no token of the text is lost. Words are numbered
        throughout the row, those of the text after those of the question. Offsets refer to the
        text only.

        Returns:
            Arrays [texts, windows, length], where the longest text determines `windows`; windows
            after the last one of a text are padding.

        Raises:
            TokenizerError: a question or text is not valid Unicode.
            ValueError: `length` is below 4, or the numbers of questions and texts differ.
        """
        return encode_pairs(self._pieces, self._pieces, questions, texts, length, _AROUND)

    def decode(
        self, tokens: Iterable[SupportsInt], words: Iterable[SupportsInt] | None = None
    ) -> str:
        """Return tokens as readable text: lower case, with blanks between words that need them.

        Args:
            tokens: ids of one text; `PAD`, `CLS` and `SEP` are left out.
            words: the words of the tokens, as returned by `encode`. Without them, blanks also
                separate the pieces of a word.
        """
        ids = [int(token) for token in tokens]
        groups = [int(word) for word in words] if words is not None else self._guessed_words(ids)
        spelled: list[bytes] = []
        last = None
        for id, group in zip(ids, groups, strict=True):
            if id in (PAD, CLS, SEP):
                last = None
            elif group == last and group >= 0:
                spelled[-1] += self._bytes[id]
            else:
                spelled.append(self._bytes[id])
                last = group
        text = ""
        for word in (part.decode("utf-8", "replace") for part in spelled):
            if text and _needs_blank(text[-1], word[0]):
                text += " "
            text += word
        return text

    def _guessed_words(self, ids: Sequence[int]) -> list[int]:
        """Number the words, assuming one per piece and one per run of bytes."""
        is_byte = [_FIRST_BYTE <= id < _FIRST_PIECE for id in ids]
        joined = [a and b for a, b in zip(is_byte, [False, *is_byte], strict=False)]
        return np.cumsum(~np.array(joined, bool)).tolist()

    def _pieces(self, texts: Sequence[str], limit: int | None, first: int) -> Pieces:
        """Return each text's first `limit` tokens; `first` is the row of texts[0], for errors."""
        texts = checked_texts(texts, first)
        composed = [unicodedata.normalize("NFKC", text) for text in texts]
        encodings = self._core.encode_batch(composed, add_special_tokens=False)
        if limit is not None:
            for encoding in encodings:
                encoding.truncate(limit + 1)  # one more, to recognise an ideograph's first byte
        counts = np.fromiter(map(len, encodings), np.int64, len(encodings))
        total = int(counts.sum())
        flat = chain.from_iterable
        tokens = np.fromiter(flat(e.ids for e in encodings), np.int32, total)
        parts = np.fromiter(flat(e.word_ids for e in encodings), np.int32, total)
        spans = np.fromiter(flat(flat(e.offsets for e in encodings)), np.int32, 2 * total)
        spans = spans.reshape(total, 2)
        for row, end in enumerate(np.cumsum(counts)):
            if composed[row] != texts[row]:
                own = spans[end - counts[row] : end]
                begins, ends = _origins(texts[row], composed[row])
                own[:] = np.stack([begins[own[:, 0]], ends[own[:, 1] - 1]], axis=1)

        starts = self._starts_han(tokens)
        starts[1:] |= parts[1:] != parts[:-1]
        return cut(Pieces(tokens, numbered(starts, counts), spans, counts), limit)

    def _starts_han(self, tokens: Int32[np.ndarray, " tokens"]) -> Bool[np.ndarray, " tokens"]:
        """Return which tokens are a piece of ideographs or the first byte of a spelled one.

        Two bytes identify the block; the second is missing for the last token of a text.
        """
        starts = self._han[tokens]
        codes = tokens - _FIRST_BYTE
        leads = np.flatnonzero((codes[:-1] >= 0xE3) & (codes[:-1] <= 0xF4))
        two = codes[leads] * 256 + codes[leads + 1]
        for low, high in _HAN_BLOCKS:
            first, last = (int.from_bytes(chr(code).encode()[:2]) for code in (low, high))
            starts[leads] |= (two >= first) & (two <= last)
        return starts


def encode_texts(split: SplitFn, texts: Sequence[str], length: int, around: Around) -> Encoded:
    """Encode texts with the special tokens around each, cut and padded to `length` tokens.

    Args:
        split: what makes their tokens.
        texts: the texts.
        length: number of tokens of a row.
        around: the special tokens.

    Raises:
        TokenizerError: a text is not valid Unicode.
        ValueError: `length` has no room for a token of a text.
    """
    start = len(around.before)
    room = length - start - len(around.after)
    if room < 1:
        raise ValueError(f"length {length} is too short for a token and those around a text")
    encoded = _padding(len(texts), length)
    encoded.tokens[:, :start] = around.before
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        pieces = split(texts[first : first + _TEXTS_AT_ONCE], room, first)
        rows, columns = _places(pieces.counts)
        rows, columns = rows + first, columns + start
        encoded.tokens[rows, columns] = pieces.tokens
        encoded.words[rows, columns] = pieces.words
        encoded.offsets[rows, columns] = pieces.offsets
        own = np.arange(first, first + len(pieces.counts))
        for place, token in enumerate(around.after):
            encoded.tokens[own, start + pieces.counts + place] = token
    return encoded


def encode_pairs(
    split_questions: SplitFn,
    split_texts: SplitFn,
    questions: Sequence[str],
    texts: Sequence[str],
    length: int,
    around: Around,
) -> Encoded:
    """Encode questions with their texts, in windows; see `Tokenizer.encode_pairs`.

    Args:
        split_questions, split_texts: what makes their tokens.
        questions, texts: the pairs.
        length: number of tokens of a row.
        around: the special tokens.

    Raises:
        TokenizerError: a question or text is not valid Unicode.
        ValueError: `length` has no room for a token of a text, or the numbers of questions and
            texts differ.
    """
    if length - length // 3 - sum(map(len, around)) < 1:
        raise ValueError(
            f"length {length} is too short for the tokens around a pair, question and text"
        )
    if len(questions) != len(texts):
        raise ValueError(f"{len(questions)} questions do not pair with {len(texts)} texts")
    parts = [
        _windows(
            split_questions(questions[start:stop], length // 3, start),
            split_texts(texts[start:stop], None, start),
            length,
            around,
        )
        for start in range(0, len(texts), _TEXTS_AT_ONCE)
        for stop in [start + _TEXTS_AT_ONCE]
    ]
    most = max((part.tokens.shape[1] for part in parts), default=1)
    padded = _padding(len(texts), most, length)
    for number, part in enumerate(parts):
        start = number * _TEXTS_AT_ONCE
        for into, given in zip(padded, part, strict=True):
            into[start : start + len(given), : given.shape[1]] = given
    return padded


def _windows(question: Pieces, text: Pieces, length: int, around: Around) -> Encoded:
    """Encode as `encode_pairs`."""
    first, number = len(around.before), len(text.counts)
    ends = question.counts + first
    starts = ends + len(around.between)
    rooms = length - starts - len(around.after)
    steps = rooms - rooms // 2
    windows = 1 + np.maximum(0, -(-(text.counts - rooms) // steps))
    encoded = _padding(number, int(windows.max(initial=1)), length)

    rows, columns = _places(question.counts)
    asked = np.full((number, length), PAD, np.int32)
    asked[:, :first] = around.before
    asked[rows, columns + first] = question.tokens
    for place, token in enumerate(around.between):
        asked[np.arange(number), ends + place] = token
    words = np.full((number, length), -1, np.int32)
    words[rows, columns + first] = question.words
    pairs, numbers = _places(windows)
    encoded.tokens[pairs, numbers] = asked[pairs]
    encoded.words[pairs, numbers] = words[pairs]

    # Each window copies its part of the text from the flat tokens.
    begins = numbers * steps[pairs]
    sizes = np.minimum(rooms[pairs], text.counts[pairs] - begins)
    window, place = _places(sizes)
    pair = pairs[window]
    heads = np.cumsum(text.counts) - text.counts
    source = heads[pair] + begins[window] + place
    target = pair, numbers[window], starts[pair] + place
    encoded.tokens[target] = text.tokens[source]
    for place_after, token in enumerate(around.after):
        encoded.tokens[pairs, numbers, starts[pairs] + sizes + place_after] = token
    offset = words.max(axis=1, initial=-1) + 1
    before = text.words[source - place]  # of the window's first token
    encoded.words[target] = text.words[source] - before + offset[pair]
    encoded.offsets[target] = text.offsets[source]
    return encoded


def numbered(starts: Bool[np.ndarray, " tokens"], counts: np.ndarray) -> Int32[np.ndarray, "..."]:
    """Return the number of each token's word in its text.

    Args:
        starts: whether a token begins a word; the first of a text always does.
        counts: number of tokens of each text.
    """
    filled = counts[counts > 0]
    heads = np.cumsum(filled) - filled
    starts[heads] = True
    words = np.cumsum(starts, dtype=np.int32)
    return words - np.repeat(words[heads], filled)


def cut(pieces: Pieces, limit: int | None) -> Pieces:
    """Return the first `limit` tokens of each text; all if it is None."""
    if limit is None:
        return pieces
    kept = _places(pieces.counts)[1] < limit
    tokens, words, offsets = (leaf[kept] for leaf in pieces[:3])
    return Pieces(tokens, words, offsets, pieces.counts.clip(max=limit))


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])


def _core(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    model = models.BPE(vocabulary, merges, unk_token=SPECIALS[UNK], byte_fallback=True)
    core = tokenizers.Tokenizer(model)
    core.normalizer = _normalizer()
    core.pre_tokenizer = pre_tokenizers.Split(
        tokenizers.Regex(_PRE_TOKEN), behavior="removed", invert=True
    )
    return core


def is_han(text: str) -> bool:
    """Return whether a text begins with an ideograph."""
    return bool(_HAN.match(text))


def checked_texts(texts: Iterable[str], first: int = 0) -> list[str]:
    """Return texts as a list.

    Args:
        texts: the texts.
        first: number of the first one, for messages.

    Raises:
        TokenizerError: one is not valid Unicode.
    """
    texts = list(texts)
    for row, text in zip(count(first), texts, strict=False):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"text {row} has half of a surrogate pair at character {error.start}: it is not "
                "valid Unicode; fix or drop it where it is read"
            ) from error
    return texts


def _origins(text: str, composed: str) -> tuple[np.ndarray, np.ndarray]:
    """Return where each character of `composed`, the NFKC of `text`, begins and ends in `text`.

    `text` is cut into the smallest parts whose NFKCs concatenate to `composed`.
    """
    sizes = [1] * len(text)
    parts = [_composed(char) for char in text]
    if "".join(parts) != composed:
        clusters: list[str] = []
        for char, alone in zip(text, parts, strict=True):
            if clusters and _joins(clusters[-1], char, alone):
                clusters[-1] += char
            else:
                clusters.append(char)
        sizes = [len(cluster) for cluster in clusters]
        parts = [unicodedata.normalize("NFKC", cluster) for cluster in clusters]
    ends = np.fromiter(accumulate(sizes), np.int32, len(sizes))
    lengths = [len(part) for part in parts]
    return np.repeat(ends - np.array(sizes, np.int32), lengths), np.repeat(ends, lengths)


def _joins(before: str, char: str, alone: str) -> bool:
    """Return whether NFKC may merge `char` (`alone` is its own NFKC) with the ones before it."""
    if unicodedata.combining(unicodedata.normalize("NFKD", char)[0]):
        return True  # marks are reordered and composed
    if before.isascii() or char.isascii():
        return False
    together, apart = (unicodedata.normalize("NFKC", part) for part in (before + char, before))
    return together != apart + alone


@lru_cache(maxsize=1 << 16)
def _composed(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _padding(*shape: int) -> Encoded:
    return Encoded(
        tokens=np.full(shape, PAD, np.int32),
        words=np.full(shape, -1, np.int32),
        offsets=np.full((*shape, 2), -1, np.int32),
    )


def _places(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of flat tokens, `counts` of them per row, left-aligned."""
    rows = np.repeat(np.arange(len(counts)), counts)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, columns


def _needs_blank(left: str, right: str) -> bool:
    both = left + right
    return both.isalnum() and not _HAN.search(both)
