"""Answers texts with the exported guide beside this file, without metaguide and JAX.

    python answer.py "Broke after a day." "Quiet and quick."

`export.json` says what each input of `model.onnx` is; this file says it in Python.
"""

import json
import re
import sys
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import tokenizers

SIDE = 32
"""Height and width of a picture, in pixels."""


class Exported(NamedTuple):
    """An exported guide.

    Attributes:
        session: what runs `model.onnx`.
        tokenizer: what makes the tokens; None if the guide reads none.
        about: the content of `export.json`.
    """

    session: onnxruntime.InferenceSession
    tokenizer: tokenizers.Tokenizer | None
    about: dict[str, Any]


def load(folder: str | Path) -> Exported:
    """Read an exported guide."""
    folder = Path(folder)
    about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    tokenizer = None
    if "tokens" in about["inputs"]:
        # It pads to the longest text and cuts at the longest that the guide reads.
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        # "[SEP]" within a text is five characters, not a separator; the file cannot say so.
        tokenizer.encode_special_tokens = True
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return Exported(session, tokenizer, about)


def answer(
    guide: Exported, texts: Sequence[str], pictures: Sequence[np.ndarray | None] = ()
) -> dict[str, np.ndarray]:
    """Return the outputs of the model for texts.

    Args:
        guide: what `load` returned.
        texts: at least one text, without the prefix that the guide puts before each.
        pictures: uint8 [32, 32, 3] or None for each text; none by default.

    Returns:
        `probabilities`, float32 [texts, classes], and `stars`, float32 [texts], if there are any.
    """
    names = [one.name for one in guide.session.get_outputs()]
    found = guide.session.run(names, inputs(guide, texts, pictures))
    return {name: np.asarray(one) for name, one in zip(names, found, strict=True)}


def inputs(
    guide: Exported, texts: Sequence[str], pictures: Sequence[np.ndarray | None] = ()
) -> dict[str, np.ndarray]:
    """Return the inputs of the model for texts; the arguments are those of `answer`."""
    given: dict[str, np.ndarray] = {}
    if guide.tokenizer is not None:
        rows = guide.tokenizer.encode_batch([guide.about["prefix"] + text for text in texts])
        given["tokens"] = np.array([row.ids for row in rows], np.int32)
        given["mask"] = np.array([row.attention_mask for row in rows], np.int32)
    if "grams" in guide.about["inputs"]:
        rows = [ngrams(text, **guide.about["ngrams"]) for text in texts]
        given["grams"] = np.zeros((len(rows), max(1, *map(len, rows))), np.int32)
        for row, numbers in enumerate(rows):
            given["grams"][row, : len(numbers)] = numbers
    if "image" in guide.about["inputs"]:
        blank = np.zeros((SIDE, SIDE, 3), np.uint8)
        pictures = pictures or [None] * len(texts)
        given["image"] = np.stack([blank if one is None else one for one in pictures])
        given["has_image"] = np.array([one is not None for one in pictures])
    return {name: given[name] for name in guide.about["inputs"]}


def ngrams(text: str, word: str, hashes: int, most: int) -> list[int]:
    """Return the numbers of the n-grams of a text, each once.

    Args:
        text: the text.
        word: the regular expression of a word.
        hashes: the numbers are below it.
        most: the most numbers; those of the beginning are kept.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    words = re.findall(word, text)
    words += [" ".join(pair) for pair in zip(words, words[1:], strict=False)]
    runs = []
    for part in (f" {part} " for part in text.split()):
        for size in (2, 3, 4):
            # A short part is its only run; repeats are left out below.
            runs += [part[at : at + size] for at in range(max(1, len(part) - size + 1))]
    numbers = [2 + 2 * _hash(one, hashes) for one in words]
    numbers += [3 + 2 * _hash(one, hashes) for one in runs]
    return list(dict.fromkeys(numbers))[:most]


def _hash(gram: str, hashes: int) -> int:
    return zlib.crc32(gram.encode("utf-8", "surrogatepass")) % (hashes // 2 - 1)


if __name__ == "__main__":
    here = load(Path(__file__).parent)
    for row in answer(here, sys.argv[1:])["probabilities"] if sys.argv[1:] else ():
        shares = zip(here.about["classes"], row.tolist(), strict=True)
        print(json.dumps({name: round(share, 4) for name, share in shares}, ensure_ascii=False))
