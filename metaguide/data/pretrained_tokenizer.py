"""The tokenizer of a pretrained encoder, read from a `tokenizer.json` by `tokenizers`."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from metaguide.data.tokenizer import MOST, TokenizerError, checked_texts
from metaguide.files import FileFault, read_regular

_TEXTS_AT_ONCE = 4096
"""Encodings hold every token as a string, so a whole corpus of them would take gigabytes."""


class Tokenized(NamedTuple):
    """Texts as the tokens that an encoder reads, concatenated.

    Attributes:
        tokens: token ids, including the special ones around each text.
        counts: number of tokens of each text.
        is_cut: whether a text was longer than the encoder reads, and was truncated.
    """

    tokens: Int32[np.ndarray, " tokens"]
    counts: Int32[np.ndarray, " texts"]
    is_cut: Bool[np.ndarray, " texts"]


@dataclass(frozen=True)
class PretrainedTokenizer:
    """A tokenizer from another source: WordPiece, Unigram or byte-pair encoding.

    Names of special tokens within a text, such as "[SEP]", are ordinary characters.

    Attributes:
        core: tokenizer of the library `tokenizers`, which neither truncates nor pads.
        before: ids before every text, such as [CLS].
        after: ids after every text, such as [SEP].
        between: ids between the two texts of a pair.
    """

    core: tokenizers.Tokenizer
    before: tuple[int, ...]
    after: tuple[int, ...]
    between: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self.core.get_vocab(with_added_tokens=True).values(), default=-1)

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
        parts, counts, is_cut = [], [], []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            at_once = texts[start : start + _TEXTS_AT_ONCE]
            some = checked_texts((prefix + text for text in at_once), start)
            for encoding in self.core.encode_batch_fast(some, add_special_tokens=False):
                ids = encoding.ids
                parts.append((*self.before, *ids[:room], *self.after))
                counts.append(len(parts[-1]))
                is_cut.append(len(ids) > room)
        tokens = np.fromiter(chain.from_iterable(parts), np.int32, sum(counts))
        return Tokenized(tokens, np.array(counts, np.int32), np.array(is_cut, bool))


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
        core, tuple(ids[:before].tolist()), tuple(ids[before + own :].tolist()), tuple(between)
    )


def _around(is_special: Sequence[int]) -> tuple[int, int]:
    """Count the special tokens at the beginning and at the end."""
    flags = [bool(flag) for flag in is_special]
    if all(flags):
        return 0, 0
    return flags.index(False), flags[::-1].index(False)
