"""Every reader has one error, whatever the bytes: damaged or mutated files, bombs, pipes."""

import gzip
import json
import os
import struct
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaguide.data import mnist, online_shopping
from metaguide.data.catalogue import CatalogueError
from metaguide.data.mnist import MnistError
from metaguide.data.tokenizer import Tokenizer, TokenizerError
from metaguide.files import FileFault, read_arrays, read_regular, unpacked
from metaguide.optimizers import StoredError, load, mlp, save
from metaguide.training.results import ResultsError, cells_to_rows, read, write

RULE = mlp(2)


def make_optimizer(folder):
    save(folder / "optimizer.npz", RULE, RULE.init(jax.random.key(0)), "by hand")
    return folder / "optimizer.npz"


def make_results(folder):
    raw = {"rank": np.ones((2, 1, 3, 2), int), "mask": np.ones((3, 2), bool)}
    raw["id"] = np.arange(6).reshape(3, 2)
    rows, scores = cells_to_rows(
        raw, table="t", arm="a", domain="d", task="recommendation", shots=5
    )
    return write(rows, scores, folder, command="c", config={"a": 1}, seeds=[0, 1])


def make_scores(folder):
    make_results(folder)
    return folder / "episodes.npz"


def make_reviews(folder):
    lines = [f"书籍,{row % 2},评论 {row}" for row in range(40)]
    with zipfile.ZipFile(folder / "reviews.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("reviews.csv", "\n".join(["cat,label,review", *lines]))
    return folder / "reviews.zip"


def make_labels(folder):
    content = b"\0\0\x08\x01" + struct.pack(">I", 30) + bytes(range(10)) * 3
    (folder / "labels.gz").write_bytes(gzip.compress(content))
    return folder / "labels.gz"


def make_tokenizer(folder):
    Tokenizer.train(["a red shoe", "a blue shoe"], 300).save(folder / "tokenizer.json")
    return folder / "tokenizer.json"


READERS = {
    "optimizer": (make_optimizer, load, StoredError),
    "results": (make_results, read, ResultsError),
    "scores": (make_scores, lambda path: read(path.parent), ResultsError),
    "reviews": (make_reviews, online_shopping.parse_online_shopping, CatalogueError),
    "labels": (make_labels, mnist.read_idx, MnistError),
    "tokenizer": (make_tokenizer, Tokenizer.load, TokenizerError),
}

edits = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["flip", "cut", "insert", "repeat"]),
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def mutated(content, edits):
    for share, kind, more in edits:
        at = int(share * max(len(content) - 1, 0))
        if kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ (more[0] or 1)]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at] + content[at + len(more) ** 3 :]
        elif kind == "insert":
            content = content[:at] + more + content[at:]
        else:
            content = content[: at + 9] + content[at:]
    return content


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=edits)
def test_mutated_bytes_are_one_error_or_read(tmp_path, name, edits):
    """Fault: a library's own error comes out of a reader, a dozen kinds of them."""
    make, reads, error = READERS[name]
    path = make(tmp_path)
    path.write_bytes(mutated(path.read_bytes(), edits))
    try:
        reads(path)
    except error as fault:
        assert str(path.parent) in str(fault)


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_an_error(tmp_path, name):
    """Faults: a named pipe hangs, a link to an endless device fills the memory, a folder is a raw
    error."""
    make, reads, error = READERS[name]
    path = make(tmp_path)
    for put in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
        path.unlink()
        put(path)
        if name == "optimizer" and path.is_dir():  # in which a file of that name is looked for
            os.rmdir(path)
            path.write_bytes(b"")
            continue
        with pytest.raises(error):
            reads(path)
        if path.is_dir():
            os.rmdir(path)
            path.write_bytes(b"")


def test_what_unpacks_to_more_than_it_may_is_not_unpacked(tmp_path):
    """Fault: a file of a kilobyte takes a gigabyte of memory before it is refused."""
    packed = tmp_path / "bomb.gz"
    packed.write_bytes(gzip.compress(bytes(2_000_000)))
    with gzip.open(packed) as file, pytest.raises(FileFault, match="holds more than 0.9537 MiB"):
        unpacked(file, 1_000_000)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(1_000_000))
    with pytest.raises(FileFault, match="holds more than"):
        read_arrays(tmp_path / "bomb.npz", 1_000_000)
    with pytest.raises(FileFault, match="holds more than"):
        read_regular(packed, 100)
    assert read_regular(packed, 10_000) == packed.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda leaf: leaf.astype(np.float64),
        lambda leaf: leaf.astype(np.int32),
        lambda leaf: leaf > 0,
        lambda leaf: leaf + 1j,
        lambda leaf: np.full_like(leaf, np.nan),
        lambda leaf: np.full_like(leaf, np.inf),
        lambda leaf: leaf.astype(str),
    ],
    ids=["float64", "int32", "bool", "complex", "nan", "infinity", "text"],
)
def test_theta_of_another_kind_is_refused(tmp_path, change):
    """Fault: integers, texts or NaN are taken for what was learned."""
    path = make_optimizer(tmp_path)
    with np.load(path) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    about = json.loads(str(found["about"]))
    del about["crc32"]  # as files from before have none
    found["about"] = np.array(json.dumps(about))
    np.savez(path, **found)
    load(path)
    name = next(name for name in found if name != "about")
    np.savez(path, **{**found, name: change(found[name])})
    with pytest.raises(StoredError, match="has to be float32 and finite|not JSON|damaged"):
        load(path)
    np.savez(path, **found, more=np.zeros(3))
    with pytest.raises(StoredError, match="'more' is no part of mlp"):
        load(path)


def test_a_changed_value_is_noticed(tmp_path):
    """Faults: a number of a table, or of an optimizer, is changed and nobody sees it."""
    path = make_results(tmp_path)
    text = path.read_text()
    path.write_text(text.replace('"value": 1.0', '"value": 0.5', 1))
    assert path.read_text() != text
    with pytest.raises(ResultsError, match="its rows are not those that were written"):
        read(tmp_path)
    stored = make_optimizer(tmp_path)
    with np.load(stored) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    name = next(name for name in found if name != "about")
    np.savez(stored, **{**found, name: found[name] + 1})
    with pytest.raises(StoredError, match="not those that were saved"):
        load(stored)


def test_a_label_beyond_the_classes_is_refused(tmp_path):
    """Fault: a damaged label is an eleventh class."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    image = b"\0\0\x08\x03" + struct.pack(">III", 2, 2, 2) + bytes(8)
    label = b"\0\0\x08\x01" + struct.pack(">I", 2) + bytes([3, 11])
    for name, content in zip(mnist.FILES["train"], (image, label), strict=True):
        (folder / name).write_bytes(gzip.compress(content))
    with pytest.raises(MnistError, match=r"labels-idx1.*: the label of picture 1 is 11"):
        mnist.read_files(folder, "train")
