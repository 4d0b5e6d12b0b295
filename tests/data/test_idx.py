"""IDX files: any shape comes back, and what is damaged is one clear error."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaguide.data.idx import IdxError, read_idx, read_pictures


def content(array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write(folder, name, array):
    (folder / name).write_bytes(gzip.compress(content(array)))


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
    image, label = read_pictures(tmp_path, "test")
    assert image.shape == (2, 2, 2) and (image == 2).all()
    assert label.tolist() == [0, 1] and label.dtype == np.int32
    write(tmp_path, "t10k-labels-idx1-ubyte.gz", np.arange(5))
    with pytest.raises(IdxError, match=r"test has pictures of shape \[2, 2, 2\] and labels of .*5"):
        read_pictures(tmp_path, "test")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda packed: packed[:-9], "cannot be unpacked"),
        (lambda packed: b"text", "cannot be unpacked"),
        (lambda packed: gzip.compress(b"PNG" + gzip.decompress(packed)), "does not begin as"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-1]), "where a file of shape"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:6]), "where a file of shape"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path, spoil, message):
    """Fault: numpy's error about shapes, or pictures of other bytes."""
    path = tmp_path / "a.gz"
    path.write_bytes(spoil(gzip.compress(content(np.ones((2, 3))))))
    with pytest.raises(IdxError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_one_clear_error(tmp_path):
    """Fault: a FileNotFoundError that does not say what to do."""
    with pytest.raises(IdxError, match="no such file; put it there"):
        read_idx(tmp_path / "a.gz")
