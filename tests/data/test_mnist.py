"""MNIST: the IDX files, and TensorFlow Datasets without TensorFlow."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.data import mnist
from metaguide.data.mnist import (
    FILES,
    MnistError,
    Pictures,
    read_files,
    read_idx,
    read_pictures,
    read_tfds,
)

COUNTS = {"train": 5, "test": 3}


def content(array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write(folder, name, array):
    (folder / name).write_bytes(gzip.compress(content(array)))


def originals(folder):
    """Writes the four files of a tiny MNIST, of pictures that differ."""
    made = {}
    for split, count in COUNTS.items():
        image = np.random.default_rng(count).integers(0, 256, (count, 28, 28))
        made[split] = image.astype(np.uint8), np.arange(count) + 1
        for name, array in zip(FILES[split], made[split], strict=True):
            write(folder, name, array)
    return made


def by_label(pictures):
    """The images in the order of their labels, which name them here."""
    assert pictures.image.dtype == np.uint8 and pictures.label.dtype == np.int32
    return pictures.image[np.argsort(pictures.label)], np.sort(pictures.label)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 9))
def test_what_is_written_is_read(tmp_path_factory, shape, seed):
    """Faults: lengths in the other byte order, values from inside the head, axes turned round."""
    array = np.random.default_rng(seed).integers(0, 256, shape)
    folder = tmp_path_factory.mktemp("idx")
    write(folder, "a.gz", array)
    np.testing.assert_array_equal(read_idx(folder / "a.gz"), array)


def test_a_split_is_its_two_files(tmp_path):
    """Faults: the test's files for those of training; labels that strict promotion refuses."""
    for name, count in (("train", 3), ("t10k", 2)):
        write(tmp_path, f"{name}-images-idx3-ubyte.gz", np.full((count, 2, 2), count))
        write(tmp_path, f"{name}-labels-idx1-ubyte.gz", np.arange(count))
    image, label = read_files(tmp_path, "test")
    assert image.shape == (2, 2, 2) and (image == 2).all()
    assert label.tolist() == [0, 1] and label.dtype == np.int32
    write(tmp_path, "t10k-labels-idx1-ubyte.gz", np.arange(5))
    with pytest.raises(MnistError, match=r"test has pictures of shape \[2, 2, 2\] and labels .*5"):
        read_files(tmp_path, "test")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda packed: packed[:-9], "cannot be unpacked"),
        (lambda packed: b"text", "cannot be unpacked"),
        (lambda packed: gzip.compress(b"PNG" + gzip.decompress(packed)), "does not begin like"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-1]), "where a file of shape"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:6]), "where a file of shape"),
        (lambda packed: gzip.compress(content(np.ones((3, 0, 2)))), "holds no pictures or labels"),
        (lambda packed: gzip.compress(content(np.ones((1,) * 5))), "holds no pictures or labels"),
        (lambda packed: gzip.compress(b"\0\0\x08\0" + b"1"), "holds no pictures or labels"),
        # Lengths whose product is 0 where 64 bits run over.
        (lambda packed: gzip.compress(b"\0\0\x08\x04" + b"\0\1\0\0" * 4), "where a file of shape"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path, spoil, message):
    """Fault: numpy's error about shapes, or pictures of other bytes."""
    path = tmp_path / "a.gz"
    path.write_bytes(spoil(gzip.compress(content(np.ones((2, 3))))))
    with pytest.raises(MnistError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_one_clear_error(tmp_path):
    """Fault: a FileNotFoundError that does not say what to do."""
    with pytest.raises(MnistError, match="no such file; put it there"):
        read_idx(tmp_path / "a.gz")


def test_the_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults: what is there is downloaded; what TensorFlow Datasets made is taken for the files;
    where one is missing, all are silently downloaded; a misspelt folder is made and filled."""
    asked = []
    made = Pictures(np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.int32))
    monkeypatch.setattr(mnist, "read_tfds", lambda *given: asked.append(given) or made)
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    assert read_pictures(None, "mnist", "train") is made
    assert read_pictures(tmp_path, "mnist", "test") is made
    assert asked == [(None, "mnist", "train"), (tmp_path, "mnist", "test")]
    originals(tmp_path / "mnist")
    assert len(read_pictures(tmp_path, "mnist", "test").image) == COUNTS["test"]
    (tmp_path / "mnist" / FILES["test"][1]).unlink()
    with pytest.raises(MnistError, match="t10k-labels-idx1-ubyte.gz: no such file; put it there"):
        read_pictures(tmp_path, "mnist", "test")
    with pytest.raises(MnistError, match="none: no such folder; set METAGUIDE_DATA_DIR"):
        read_pictures(tmp_path / "none", "mnist", "test")
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_tensorflow_datasets_without_tensorflow(
    tmp_path: Path, site, trace: Path, monkeypatch: pytest.MonkeyPatch, name
) -> None:
    """Faults: TensorFlow is needed to download, prepare or read; a second reading downloads again;
    one split's files are the other's; a label is another picture's; a picture is turned, inverted
    or not the same to the bit."""
    served, address = site
    made = originals(served)
    monkeypatch.setitem(mnist._SITES, name, address)
    folder = tmp_path / "tfds"
    with pytest.raises(MnistError, match=rf"tfds: no {name}; allow the download, or put train-im"):
        read_tfds(folder, name, "test", download=False)
    first = read_tfds(folder, name, "train")
    for path in served.iterdir():
        path.unlink()
    for split, wanted in made.items():
        for found, right in zip(
            by_label(read_tfds(folder, name, split, download=False)), wanted, strict=True
        ):
            np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(first.image, read_pictures(folder, name, "train").image)
    assert not trace.exists() and "tensorflow" not in sys.modules


@pytest.mark.parametrize("form", ["tfrecord", "riegeli", "parquet"])
def test_another_format_of_tensorflow_datasets_is_one_error(
    tmp_path: Path, site, trace: Path, monkeypatch: pytest.MonkeyPatch, form
) -> None:
    """Faults: the message is TensorFlow Datasets' own, lacks the folder or the fix; the data set
    is prepared again beside what is there; TensorFlow is needed to say so."""
    served, address = site
    originals(served)
    monkeypatch.setitem(mnist._SITES, "mnist", address)
    folder = tmp_path / "tfds"
    read_tfds(folder, "mnist", "train")
    (about,) = folder.rglob("dataset_info.json")
    about.write_text(about.read_text().replace('"array_record"', f'"{form}"'))
    for file in about.parent.glob("*.array_record*"):
        file.rename(file.with_name(file.name.replace("array_record", form)))
    before = sorted(folder.rglob("*"))
    with pytest.raises(
        MnistError,
        match=rf"^{about.parent}: mnist was prepared there as {form}, .* delete that folder or move"
        r" it away, and it is prepared again, or put train-images",
    ):
        read_tfds(folder, "mnist", "train")
    assert sorted(folder.rglob("*")) == before and not trace.exists()


def test_no_download_is_one_error(tmp_path: Path, site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults: without network, without a file, with a damaged one or for another data set the error
    is another library's, lacks the fix or takes minutes."""
    served, address = site
    hint = r"or put train-images-idx3-ubyte.gz and so on into mnist/ in the folder that METAGUIDE_"
    monkeypatch.setitem(mnist._SITES, "mnist", address)
    originals(served)
    (served / FILES["test"][0]).write_bytes(b"text")
    with pytest.raises(MnistError, match="cannot be unpacked"):
        read_pictures(tmp_path, "mnist", "train")
    (served / FILES["test"][1]).unlink()
    with pytest.raises(MnistError, match=rf"cannot be downloaded or read \(.*404.*{hint}"):
        read_pictures(tmp_path / "served", "mnist", "train")
    monkeypatch.setitem(mnist._SITES, "mnist", "http://127.0.0.1:9/")
    with pytest.raises(MnistError, match=f"no way to 127.0.0.1:9 .*fix the network, {hint}"):
        read_pictures(tmp_path, "mnist", "train")
    with pytest.raises(MnistError, match="no pictures 'letters'; take mnist or fashion_mnist, or"):
        read_pictures(None, "letters", "train")
