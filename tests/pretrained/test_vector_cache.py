import errno
import os
from dataclasses import fields, replace

import jax.numpy as jnp
import numpy as np
import pytest

from metaguide.pretrained import (
    CacheFault,
    PretrainedEncoder,
    States,
    cached_states,
    cached_vectors,
    load_encoder,
    remembered,
    vector_cache,
)
from metaguide.pretrained.vector_cache import identity

TEXTS = ["good", "", "bad phone", "good"]


def test_vectors_that_were_asked_for_last_are_remembered(encoder):
    """Faults: a text is computed again though it is among the last; vectors without end stay in
    memory; a repeat in one call is computed twice, or the rows change places; none is an error."""
    vectors = remembered(encoder.encode, most=3)
    for texts in (TEXTS, ["bad phone", "good"], [], ["worse", "bad phone"], ["good", ""]):
        np.testing.assert_array_equal(vectors(texts), Counting.encode(encoder, texts))
        asked.pop()
    assert asked == [["good", "", "bad phone"], [], [], ["worse"], [""]]


asked: list[list[str]] = []
"""What the encoder was asked for, call by call."""


class Counting(PretrainedEncoder):
    """An encoder that computes nothing."""

    def encode(self, texts):
        """Return the length of a text and its first character."""
        asked.append(list(texts))
        rows = [[len(text), ord((text or "-")[0])] * 8 for text in texts]
        return np.array(rows, np.float32).reshape(-1, 16)

    def states(self, texts, dtype=np.float16):
        """Return the same, once for each character and for two tokens around them."""
        counts = np.array([len(text) + 2 for text in texts], np.int32)
        return States(np.repeat(self.encode(texts), counts, axis=0).astype(dtype), counts)


@pytest.fixture
def encoder(folders):
    del asked[:]
    real = load_encoder(folders("bert"))
    return Counting(**{field.name: getattr(real, field.name) for field in fields(real)})


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_text_is_computed_once(tmp_path, encoder):
    """Catches vectors of other texts, a text that is computed twice, and a part left behind."""
    expected = [[4, 103], [0, 45], [9, 98], [4, 103]]
    assert cached_vectors(encoder, TEXTS, tmp_path)[:, :2].tolist() == expected
    assert asked == [["good", "", "bad phone"]]
    assert cached_vectors(encoder, [*TEXTS, "new"], tmp_path)[:, :2].tolist() == [
        *expected,
        [3, 110],
    ]
    assert asked[1:] == [["new"]]
    assert len(files(tmp_path)) == 2 and cached_vectors(encoder, [], tmp_path).shape == (0, 16)


def test_states_are_kept_too(tmp_path, encoder):
    """Catches states of texts of several lengths that are cut at the wrong places."""
    first = cached_states(encoder, TEXTS, tmp_path)
    del asked[:]
    again = cached_states(encoder, TEXTS[::-1], tmp_path)
    assert asked == [] and again.states.dtype == np.float16
    assert again.counts.tolist() == first.counts.tolist()[::-1] == [6, 11, 2, 6]
    np.testing.assert_array_equal(again.states[6:17], first.states[8:19])
    assert cached_states(encoder, [], tmp_path).states.shape == (0, 16)


@pytest.mark.parametrize(
    "changed",
    [
        {"fingerprint": "b" * 64},
        {"prefix": "query: "},
        {"pooling": "cls"},
        {"length": 12},
        {"dtype": jnp.dtype("bfloat16")},
    ],
)
def test_another_encoder_has_its_own(tmp_path, encoder, changed):
    """Catches vectors of another encoder: another folder, prefix, pooling, length or dtype."""
    cached_vectors(encoder, TEXTS, tmp_path)
    del asked[:]
    other = replace(encoder, **changed)
    cached_vectors(other, TEXTS, tmp_path)
    assert asked == [["good", "", "bad phone"]]
    # A file that somebody copied from there to here is not read either.
    (theirs,) = (tmp_path / f"vectors-{identity(encoder)}").iterdir()
    (own,) = (tmp_path / f"vectors-{identity(other)}").iterdir()
    own.write_bytes(theirs.read_bytes())
    with pytest.warns(CacheFault, match="it is of vectors .*; it is deleted"):
        cached_vectors(other, TEXTS, tmp_path)
    assert len(asked) == 2


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_damaged_file_is_made_again(tmp_path, encoder, share: float):
    """Catches half a file that is read, or that ends the run, or that is told of for ever."""
    expected = cached_vectors(encoder, TEXTS, tmp_path)
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.warns(CacheFault, match="it is deleted, and what it held is computed again"):
        found = cached_vectors(encoder, TEXTS, tmp_path)
    np.testing.assert_array_equal(found, expected)
    del asked[:]
    cached_vectors(encoder, TEXTS, tmp_path)
    assert asked == []


def test_a_full_disk_costs_time_alone(tmp_path, encoder, monkeypatch):
    """Catches vectors that are lost with the disk, and half a file that is left on it."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(CacheFault, match="cannot be kept here .*No space left"):
        found = cached_vectors(encoder, TEXTS, tmp_path)
    assert found.tolist() == encoder.encode(TEXTS).tolist() and files(tmp_path) == []


def test_a_folder_that_cannot_be_made_costs_time_alone(tmp_path, encoder):
    """Catches an error where the folder of the cache is a file."""
    (tmp_path / "file").write_text("")
    with pytest.warns(CacheFault, match="cannot be kept here"):
        assert len(cached_vectors(encoder, TEXTS, tmp_path / "file")) == 4


def test_what_was_interrupted_goes_on(tmp_path, encoder, monkeypatch):
    """Catches an encoding that writes at its end alone."""
    monkeypatch.setattr(vector_cache, "TEXTS_PER_FILE", 2)
    real = encoder.encode

    def interrupted(texts):
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(texts)

    object.__setattr__(encoder, "encode", interrupted)
    texts = [f"text {number}" for number in range(6)]
    with pytest.raises(KeyboardInterrupt):
        cached_vectors(encoder, texts, tmp_path)
    object.__delattr__(encoder, "encode")
    del asked[:]
    cached_vectors(encoder, texts, tmp_path)
    assert asked == [texts[4:]]


def test_many_files_are_put_together(tmp_path, encoder, monkeypatch):
    """Catches a folder that grows by a file a call, and vectors that are lost in putting them."""
    monkeypatch.setattr(vector_cache, "MANY_FILES", 4)
    texts = [f"text {number}" for number in range(6)]
    for text in texts:
        cached_vectors(encoder, [text], tmp_path)
    assert len(files(tmp_path)) == 3
    del asked[:]
    cached_vectors(encoder, texts, tmp_path)
    assert asked == []


def test_files_that_another_process_has_put_together_are_no_fault(tmp_path, encoder, monkeypatch):
    """Catches a call that fails since a file has gone between its being listed and being read."""
    monkeypatch.setattr(vector_cache, "MANY_FILES", 4)
    cached_vectors(encoder, ["a", "b"], tmp_path)
    (kept,) = files(tmp_path)
    gone = [kept.with_name(f"{number:016x}.npz") for number in range(4)]
    listed = type(kept).glob

    def glob(self, pattern):
        found = list(listed(self, pattern))
        return [*found, *gone] if self == kept.parent else found

    monkeypatch.setattr(type(kept), "glob", glob)
    del asked[:]
    cached_vectors(encoder, ["a", "c"], tmp_path)
    assert asked == [["c"]]
