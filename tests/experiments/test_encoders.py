"""The pretrained encoder that a config names."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections.config_dict import FrozenConfigDict

from experiments import encoders
from metaguide.pretrained import load_encoder
from tests.pretrained.conftest import write


def test_vectors_of_many_texts_are_those_of_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches texts that are lost, repeated or out of order where an hour's work shows how far it
    is, and no word of it."""
    asked, shown = [], []

    def read(texts: list[str]) -> np.ndarray:
        asked.append(len(texts))
        return np.array([[len(text), ord(text[0])] for text in texts], np.float32).reshape(-1, 2)

    class Progress:
        def __init__(self, name: str, total: int, unit: str) -> None:
            self.total = total

        def __enter__(self) -> "Progress":
            return self

        def __exit__(self, *fault: object) -> None:
            pass

        def __call__(self, done: int, note: str) -> None:
            shown.append((done, self.total))

    monkeypatch.setattr(encoders, "AT_ONCE", 3)
    monkeypatch.setattr(encoders, "progress", Progress)
    whole = SimpleNamespace(reads_to_the_end=lambda texts: np.ones(len(texts), bool))
    monkeypatch.setattr(encoders, "load_of", lambda section, length: whole)
    monkeypatch.setattr(encoders, "vector_reader", lambda encoder, folder: read)
    section = FrozenConfigDict({"length": 8, "cache": ""})
    found = encoders.read_encoder(section, Path())
    assert found is not None
    texts = [chr(97 + n) * n for n in range(1, 9)]
    np.testing.assert_array_equal(found.vectors(texts), read(texts))
    assert asked == [3, 3, 2, 8] and shown == [(3, 8), (6, 8), (8, 8)]
    assert found.vectors([]).shape == (0, 2)


def test_texts_that_are_cut_are_counted_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a warning for every part of many texts, and cut texts that are not mentioned."""
    monkeypatch.setattr(encoders, "AT_ONCE", 2)
    encoder = load_encoder(write(tmp_path / "encoder", "bert"), length=5)
    texts = ["good", "good phone good phone good", "phone", "it is a good phone", "a phone"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = encoders.vectors_of(encoder, tmp_path / "vectors")(texts)
    said = capsys.readouterr().out
    assert said.count("2 of 5 texts are longer than 5 tokens; the rest is not read") == 1
    with pytest.warns(UserWarning, match="longer than"):
        expected = encoder.encode(texts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
