"""The tokenizer of a pretrained encoder, read from a `tokenizer.json` by `tokenizers`."""

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from metaguide.data.tokenizer import (
    CLS,
    MASK,
    MOST,
    PAD,
    SEP,
    SPECIALS,
    UNK,
    Around,
    Encoded,
    Pieces,
    TokenizerError,
    checked_texts,
    cut,
    encode_pairs,
    encode_texts,
    is_han,
    numbered,
)
from metaguide.files import FileFault, read_regular

_TEXTS_AT_ONCE = 4096
"""Encodings hold every token as a string, so a whole corpus of them would take gigabytes."""

UNKNOWN = ("[UNK]", "<unk>")
"""Names of the token that stands for what is not in a vocabulary."""

_LETTER, _MARK, _HAN, _SPACE = range(4)
"""Kinds of characters; a letter is what is none of the others."""


class Tokenized(NamedTuple):
    """Texts as the tokens that an encoder reads, concatenated.

    Attributes:
        tokens: token ids, including the special ones around each text.
        counts: number of tokens of each text.
        is_cut: whether a text was longer than the encoder reads, and was truncated.
        is_unknown: whether the tokenizer knows less than half of the pieces of a text.
    """

    tokens: Int32[np.ndarray, " tokens"]
    counts: Int32[np.ndarray, " texts"]
    is_cut: Bool[np.ndarray, " texts"]
    is_unknown: Bool[np.ndarray, " texts"]


@dataclass(frozen=True)
class PretrainedTokenizer:
    """A tokenizer from another source: WordPiece, Unigram or byte-pair encoding.

    Names of special tokens within a text, such as "[SEP]", are ordinary characters.

    Attributes:
        core: tokenizer of the library `tokenizers`, which neither truncates nor pads.
        before: ids before every text, such as [CLS].
        after: ids after every text, such as [SEP].
        between: ids between the two texts of a pair.
        types_pairs: whether the second text of a pair, and the ids after it, are of type 1.
    """

    core: tokenizers.Tokenizer
    before: tuple[int, ...]
    after: tuple[int, ...]
    between: tuple[int, ...]
    types_pairs: bool = False

    @cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self.core.get_vocab(with_added_tokens=True).values(), default=-1)

    def id_of(self, *names: str, default: int) -> int:
        """Return the id of the first of these tokens that there is."""
        ids = (self.core.token_to_id(name) for name in names)
        return next((found for found in ids if found is not None), default)

    def encode(self, texts: Sequence[str], length: int, prefix: str = "") -> Tokenized:
        """Return texts as tokens; an empty text has only the special tokens around it.

        Args:
            texts: any texts, including empty ones.
            length: the most tokens of a text, including those around it; the rest is cut off.
            prefix: prefix of each text.

        Raises:
            TokenizerError: a text is not valid Unicode.
            ValueError: `length` has no room for a token.
        """
        room = length - len(self.before) - len(self.after)
        if room < 1:
            raise ValueError(f"length {length} has no room besides the tokens around a text")
        of_prefix = len(self.core.encode(prefix, add_special_tokens=False)) if prefix else 0
        unknown = self.id_of(*UNKNOWN, default=-1)
        parts, counts, is_cut, is_unknown = [], [], [], []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            at_once = texts[start : start + _TEXTS_AT_ONCE]
            some = checked_texts((prefix + text for text in at_once), start)
            for encoding in self.core.encode_batch_fast(some, add_special_tokens=False):
                ids = encoding.ids
                parts.append((*self.before, *ids[:room], *self.after))
                counts.append(len(parts[-1]))
                is_cut.append(len(ids) > room)
                own = ids[of_prefix:]
                is_unknown.append(2 * own.count(unknown) > len(own))
        tokens = np.fromiter(chain.from_iterable(parts), np.int32, sum(counts))
        marks = np.array(is_cut, bool), np.array(is_unknown, bool)
        return Tokenized(tokens, np.array(counts, np.int32), *marks)


@dataclass(frozen=True)
class GuideTokenizer:
    """A pretrained tokenizer as a guide reads it: a `TextTokenizer`, whose specials come first.

    The ids 0 to 4 are `metaguide.data.tokenizer.SPECIALS`; the other ids follow in their order.
    Tokens within a text that have the id of a special become `UNK`.

    Attributes:
        tokenizer: the tokenizer.
        prefix: prefix of every text; of a pair, that of the question.
        ids: the tokenizer's id of each id.
    """

    tokenizer: PretrainedTokenizer
    prefix: str
    ids: Int32[np.ndarray, " ids"]

    @property
    def size(self) -> int:
        """Number of ids; all tokens are below it."""
        return len(self.ids)

    @cached_property
    def numbers(self) -> Int32[np.ndarray, " ids"]:
        """The id here of each of the tokenizer's ids."""
        own = np.full(self.tokenizer.size, UNK, np.int32)
        own[self.ids[len(SPECIALS) :]] = np.arange(len(SPECIALS), self.size)
        # A tokenizer may use one id for two specials; these two are what the model looks for.
        for special in (PAD, UNK, MASK, CLS, SEP):
            own[self.ids[special]] = special
        return own

    @cached_property
    def _around(self) -> Around:
        own, of = self.numbers, self.tokenizer
        return Around(
            *(tuple(own[list(ids)].tolist()) for ids in (of.before, of.between, of.after))
        )

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        """Encode texts, cut and padded to `length` tokens.

        Words are runs of letters and digits, single punctuation marks, and single pieces of Chinese
        runs; the prefix has none.

        Raises:
            TokenizerError: a text is not valid Unicode.
            ValueError: `length` has no room for a token of a text.
        """
        return encode_texts(partial(self._pieces, self.prefix), texts, length, self._around)

    def encode_pairs(self, questions: Sequence[str], texts: Sequence[str], length: int) -> Encoded:
        """Encode pairs in windows, as `metaguide.data.tokenizer.Tokenizer.encode_pairs` does.

        Raises:
            TokenizerError: a question or text is not valid Unicode.
            ValueError: `length` has no room for a token of a text, or the numbers of questions and
                texts differ.
        """
        split = partial(self._pieces, self.prefix), partial(self._pieces, "")
        return encode_pairs(*split, questions, texts, length, self._around)

    def _pieces(self, prefix: str, texts: Sequence[str], limit: int | None, first: int) -> Pieces:
        """Return each text's first `limit` tokens; `first` is the row of texts[0], for errors."""
        texts = [prefix + text for text in checked_texts(texts, first)]
        encodings = self.tokenizer.core.encode_batch(texts, add_special_tokens=False)
        counts = np.fromiter(map(len, encodings), np.int64, len(encodings))
        total = int(counts.sum())
        flat = chain.from_iterable
        tokens = self.numbers[np.fromiter(flat(e.ids for e in encodings), np.int32, total)]
        parts = np.fromiter(flat(e.word_ids for e in encodings), np.int32, total)
        spans = np.fromiter(flat(flat(e.offsets for e in encodings)), np.int32, 2 * total)
        spans, kinds = _trimmed(texts, spans.reshape(total, 2), counts)
        starts = np.ones(total, bool)
        starts[1:] = (parts[1:] != parts[:-1]) | (kinds[1:] != kinds[:-1]) | (kinds[1:] != _LETTER)
        starts[1:] &= (spans[1:] != spans[:-1]).any(1)  # not between the bytes of a character

        of_prefix = (spans[:, 1] <= len(prefix)) & bool(prefix)
        starts = (starts | np.roll(of_prefix, 1)) & ~of_prefix
        heads = np.repeat(np.cumsum(counts) - counts, counts)
        words = numbered(starts, counts) - of_prefix[heads]  # the prefix has a number of its own
        words[of_prefix] = -1
        spans = np.where(of_prefix[:, None], -1, np.maximum(spans - len(prefix), 0))
        tokens = np.where(tokens < len(SPECIALS), UNK, tokens)
        tokens, words, spans = (leaf.astype(np.int32) for leaf in (tokens, words, spans))
        return cut(Pieces(tokens, words, spans, counts), limit)


def guide_tokenizer(tokenizer: PretrainedTokenizer, pad: int, prefix: str = "") -> GuideTokenizer:
    """Return a pretrained tokenizer as a guide reads it.

    Args:
        tokenizer: the tokenizer.
        pad: the id that stands for a special token that it does not name.
        prefix: prefix of every text.

    Raises:
        TokenizerError: it puts no token between the texts of a pair.
    """
    if not tokenizer.between:
        raise TokenizerError(
            "the tokenizer puts no token between a question and its text; give an encoder whose "
            "tokenizer does, as those of the BERT family do"
        )

    named = partial(tokenizer.id_of, default=pad)
    specials = {
        PAD: named("[PAD]", "<pad>"),
        UNK: named(*UNKNOWN),
        CLS: tokenizer.before[0],
        SEP: tokenizer.between[0],
        MASK: named("[MASK]", "<mask>", *UNKNOWN),
    }
    first = [specials[special] for special in range(len(SPECIALS))]
    rest = [id for id in range(tokenizer.size) if id not in first]
    return GuideTokenizer(tokenizer, prefix, np.array(first + rest, np.int32))


def read_tokenizer(path: Path) -> PretrainedTokenizer:
    """Read a tokenizer that the library `tokenizers` wrote.

    Args:
        path: path of the `tokenizer.json`.

    Raises:
        FileNotFoundError: the file does not exist.
        TokenizerError: the file is damaged, or puts no tokens around a text.
    """
    try:
        core = tokenizers.Tokenizer.from_str(read_regular(path, MOST).decode("utf-8"))
    except (FileNotFoundError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except FileFault as error:
        raise TokenizerError(f"{path}: {error}") from error
    # The library raises nothing more specific; panics of its Rust code are not even Exceptions.
    except BaseException as error:
        raise TokenizerError(
            f"{path}: not a readable tokenizer ({error}); it may be an incomplete download: fetch "
            "it again"
        ) from error
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = True
    with warnings.catch_warnings():
        around = core.encode("a")
        pair = core.encode("a", "a")
    before, after = _around(around.special_tokens_mask)
    if not before:
        raise TokenizerError(
            f"{path}: it puts no token before a text, unlike tokenizers of the BERT family"
        )
    ids, own = np.array(around.ids), len(around.ids) - before - after
    between = pair.ids[before + own : len(pair.ids) - own - after]
    return PretrainedTokenizer(
        core,
        tuple(ids[:before].tolist()),
        tuple(ids[before + own :].tolist()),
        tuple(between),
        types_pairs=pair.type_ids[-1] == 1,
    )


def _trimmed(
    texts: Sequence[str], spans: Int32[np.ndarray, "tokens 2"], counts: np.ndarray
) -> tuple[Int32[np.ndarray, "tokens 2"], np.ndarray]:
    """Return the tokens' spans without the white space at their ends, and what they begin with.

    Args:
        texts: the texts.
        spans: half-open character spans of all tokens.
        counts: number of tokens of each text.
    """
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    found, places = np.unique(codes, return_inverse=True)
    kinds = np.fromiter(map(_kind, map(chr, found.tolist())), np.int8, len(found))[places]
    number = np.arange(len(codes))
    after = np.where(kinds == _SPACE, len(codes), number)
    after = np.minimum.accumulate(np.append(after, len(codes))[::-1])[::-1]
    before = np.maximum.accumulate(np.append(0, np.where(kinds == _SPACE, 0, number + 1)))
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    past = np.cumsum(sizes)
    first = np.repeat(past - sizes, counts)
    begins, ends = (spans + first[:, None]).T
    # A token of white space alone is empty, where the next character is.
    begins = np.minimum(after[begins], np.repeat(past, counts))
    ends = np.maximum(before[ends], begins)
    trimmed = np.stack([begins - first, ends - first], axis=1).astype(np.int32)
    return trimmed, np.append(kinds, _LETTER)[begins]


@lru_cache(maxsize=1 << 16)
def _kind(char: str) -> int:
    if char.isspace():
        return _SPACE
    if is_han(char):
        return _HAN
    return _MARK if unicodedata.category(char)[0] in "PS" else _LETTER


def _around(is_special: Sequence[int]) -> tuple[int, int]:
    """Count the special tokens at the beginning and at the end."""
    flags = [bool(flag) for flag in is_special]
    if all(flags):
        return 0, 0
    return flags.index(False), flags[::-1].index(False)
