"""Vectors and token states on disk, keyed by the content of a text and the encoder.

A cache has one folder for the vectors of each encoder and one for its states. These hold files of
some thousand texts, each written atomically; an interrupted encoding resumes after the last one. A
checksum protects the content of a file, and an identity ties it to the encoder: its files, prefix,
pooling, length and dtype.
"""

import hashlib
import json
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from metaguide.files import FileFault, read_arrays, write_arrays
from metaguide.pretrained.encoder import PretrainedEncoder, States

Vectors = Callable[[Sequence[str]], Float32[np.ndarray, "texts width"]]
"""texts -> one vector per text."""

TEXTS_PER_FILE = 4096
"""The most texts per file."""

CHARACTERS_PER_FILE = 2**19
"""A file is complete at this many characters, which bounds its tokens: a token has at least one
character, and its state takes 2 bytes per unit."""

MANY_FILES = 64
"""Number of an encoder's files from which they are merged into one."""

MOST = 2**34
"""The most bytes of a file."""

_DIGEST = 16


class CacheFault(UserWarning):
    """A file of the cache was not read or not written; only time is lost."""


def cached_vectors(
    encoder: PretrainedEncoder, texts: Sequence[str], folder: str | os.PathLike[str]
) -> Float32[np.ndarray, "texts width"]:
    """Return `encoder.encode(texts)`, computing only the vectors that the cache lacks.

    A file of the cache that is damaged or of another encoder is deleted, and its vectors are
    computed again. If the disk is full or the folder is not writable, the vectors are still
    returned. Both cases give a `CacheFault` warning.

    Args:
        encoder: the encoder.
        texts: any texts; repeated ones are computed once.
        folder: folder of the cache, created if missing; encoders may share it.

    Raises:
        TokenizerError: a text is not valid Unicode.
    """
    return vector_reader(encoder, folder)(texts)


def vector_reader(encoder: PretrainedEncoder, folder: str | os.PathLike[str]) -> Vectors:
    """Return texts -> `cached_vectors` of them, for many calls: it reads the cache only once.

    The vectors of the cache stay in memory, 4 bytes per number.

    Args:
        encoder, folder: as in `cached_vectors`.
    """
    own = _own(encoder, "vectors", folder)
    kept = _read(own, encoder, "vectors")

    def vectors(texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        nonlocal own
        for some in _missing(texts, kept):
            rows = encoder.encode(some)
            found = {_digest(text): row[None] for text, row in zip(some, rows, strict=True)}
            kept.update(found)
            own = _written(own, found, encoder, "vectors")
        _join(own, encoder, "vectors")
        empty = np.zeros((0, encoder.config.width), np.float32)
        return np.concatenate([empty, *(kept[_digest(text)] for text in texts)])

    return vectors


def remembered(vectors: Vectors, most: int = 8192) -> Vectors:
    """Return the same function, which does not compute anew what it was asked for last.

    Threads may call it together.

    Args:
        vectors: computes them.
        most: number of texts whose vectors stay in memory.
    """
    kept: OrderedDict[bytes, Float32[np.ndarray, " width"]] = OrderedDict()
    lock = threading.Lock()

    def found(texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        keys = [_digest(text) for text in texts]
        with lock:
            known = {key: kept[key] for key in keys if key in kept}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        rows = vectors(list(new.values()))
        # Copies, since a row would keep those of all texts of its call in memory.
        known |= {key: row.copy() for key, row in zip(new, rows, strict=True)}
        with lock:
            for key in keys:
                kept[key] = known[key]
                kept.move_to_end(key)
            while len(kept) > most:
                kept.popitem(last=False)
        return np.stack([known[key] for key in keys]) if keys else rows

    return found


def cached_states(
    encoder: PretrainedEncoder, texts: Sequence[str], folder: str | os.PathLike[str]
) -> States:
    """Return `encoder.states(texts)` in float16, computing only those that the cache lacks.

    Args:
        encoder: the encoder.
        texts: any texts; repeated ones are computed once.
        folder: as in `cached_vectors`.

    Raises:
        TokenizerError: a text is not valid Unicode.
    """
    own = _own(encoder, "states", folder)
    kept = _read(own, encoder, "states")
    for some in _missing(texts, kept):
        states, counts = encoder.states(some)
        parts = np.split(states, np.cumsum(counts)[:-1])
        found = {_digest(text): part for text, part in zip(some, parts, strict=True)}
        kept |= found
        own = _written(own, found, encoder, "states")
    _join(own, encoder, "states")
    parts = [kept[_digest(text)] for text in texts]
    empty = np.zeros((0, encoder.config.width), np.float16)
    return States(
        np.concatenate([empty, *parts]), np.array([len(part) for part in parts], np.int32)
    )


def identity(encoder: PretrainedEncoder) -> str:
    """Return a hexadecimal hash of everything that determines a text's vector."""
    parts = {
        "fingerprint": encoder.fingerprint,
        "prefix": encoder.prefix,
        "pooling": encoder.pooling,
        "length": encoder.length,
        "dtype": np.dtype(encoder.dtype).name,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _own(encoder: PretrainedEncoder, of: str, folder: str | os.PathLike[str]) -> Path | None:
    """Return the folder of an encoder's files, or None if it cannot be created."""
    path = Path(folder) / f"{of}-{identity(encoder)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _say(path, error)
        return None
    return path


def _read(own: Path | None, encoder: PretrainedEncoder, of: str) -> dict[bytes, np.ndarray]:
    """Return the vectors or states in an encoder's files, keyed by the digest of the text."""
    kept: dict[bytes, np.ndarray] = {}
    for path in sorted(own.glob("*.npz")) if own else ():
        try:
            arrays = read_arrays(path, MOST, of=f"{of} {identity(encoder)}")
            digests, counts, values = arrays["digests"], arrays["counts"], arrays["values"]
            if values.shape[1:] != (encoder.config.width,) or counts.sum() != len(values):
                raise FileFault("its arrays do not fit together")
            parts = np.split(values, np.cumsum(counts)[:-1])
            kept |= zip(map(bytes, digests), parts, strict=True)
        except FileNotFoundError:  # another process has merged files
            continue
        except (FileFault, KeyError, ValueError) as error:
            warnings.warn(
                f"{path}: {error}; it is deleted, and what it held is computed again",
                CacheFault,
                stacklevel=3,
            )
            path.unlink(missing_ok=True)
    return kept


def _missing(texts: Sequence[str], kept: dict[bytes, np.ndarray]) -> Iterator[list[str]]:
    """Yield the missing texts, without repeats, in lists of one file each."""
    some: list[str] = []
    characters = 0
    for text in dict.fromkeys(texts):
        if _digest(text) in kept:
            continue
        some.append(text)
        characters += len(text)
        if len(some) == TEXTS_PER_FILE or characters >= CHARACTERS_PER_FILE:
            yield some
            some, characters = [], 0
    if some:
        yield some


def _written(
    own: Path | None, found: dict[bytes, np.ndarray], encoder: PretrainedEncoder, of: str
) -> Path | None:
    """Write a file; return the folder for the next one, or None if writing failed."""
    if own is None:
        return None
    arrays = {
        "digests": np.frombuffer(b"".join(found), np.uint8).reshape(-1, _DIGEST),
        "counts": np.array([len(part) for part in found.values()], np.int64),
        "values": np.concatenate(list(found.values())),
    }
    name = hashlib.sha256(arrays["digests"].tobytes()).hexdigest()[:16]
    try:
        write_arrays(own / f"{name}.npz", arrays, of=f"{of} {identity(encoder)}")
    except OSError as error:
        _say(own, error)
        return None
    return own


def _join(own: Path | None, encoder: PretrainedEncoder, of: str) -> None:
    """Merge an encoder's files if there are many, as after many small calls."""
    paths = sorted(own.glob("*.npz")) if own else ()
    if own is None or len(paths) < MANY_FILES:
        return
    before = {path: _changed(path) for path in paths}
    if _written(own, _read(own, encoder, of), encoder, of):
        for path, written in before.items():
            if written is not None and _changed(path) == written:
                path.unlink(missing_ok=True)


def _changed(path: Path) -> int | None:
    """Return when a file was changed; None if another process has merged and removed it."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _say(path: Path, error: OSError) -> None:
    warnings.warn(
        f"{path}: results cannot be kept here ({error}); they are still used, but will be "
        "computed again next time",
        CacheFault,
        stacklevel=4,
    )


_digest_of = partial(hashlib.blake2b, digest_size=_DIGEST)


def _digest(text: str) -> bytes:
    return _digest_of(text.encode("utf-8", "surrogatepass")).digest()
