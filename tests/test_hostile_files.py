"""Every reader has one error, whatever the bytes: damaged or mutated files, bombs, pipes."""

import gzip
import io
import json
import os
import struct
import tempfile
import zipfile
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections.config_dict import FrozenConfigDict
from PIL import Image

import metaguide
from experiments.cells.outcomes import OUTCOME, outcome_of, outcomes_in
from experiments.config_files import ConfigError
from experiments.run_folder import read_config, write_config
from metaguide import run_config
from metaguide.data import mnist, omniglot, online_shopping
from metaguide.data.catalogue import CatalogueError, read_domain
from metaguide.data.mnist import MnistError
from metaguide.data.omniglot import OmniglotError
from metaguide.data.tokenizer import Tokenizer, TokenizerError
from metaguide.evaluation.results import ResultsError, cells_to_rows, read, write
from metaguide.files import FileFault, read_arrays, read_regular, unpacked, write_json
from metaguide.guide import model_of
from metaguide.models.guide import init_params
from metaguide.objectives.weighting import fixed
from metaguide.optimizers import StoredError, load, mlp, save
from metaguide.tasks import RECOMMENDATION
from metaguide.training import checkpoint
from metaguide.training.checkpoint import CheckpointError
from metaguide.training.loop import METRICS, metrics_in
from metaguide.training.step import init_state

RULE = mlp(2)


RUN_ERRORS = (CheckpointError, TokenizerError, StoredError)


def load_run(path):
    return metaguide.load(path.parent)


def make_optimizer(folder):
    save(folder / "optimizer.npz", RULE, RULE.init(jax.random.key(0)), "by hand")
    return folder / "optimizer.npz"


def make_results(folder):
    raw = {"rank": np.ones((2, 1, 3, 2), int), "mask": np.ones((3, 2), bool)}
    raw["id"] = np.arange(6).reshape(3, 2)
    rows, scores = cells_to_rows(
        raw, table="t", method="a", domain="d", scoring=RECOMMENDATION.scoring, shots=5
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


CONFIG = {
    "model": {"width": 4, "layers": 1, "heads": 2, "dropout": 0.1, "way": 3, "channels": [2, 4],
              "image": False},
    "text": {"text": 8, "pair": 16, "name": 4},
    "episodes": {"longest": 4},
    "metatrain": {"inner_rate": 0.3},
    "adapt": {"steps": 3},
}  # fmt: skip


@cache
def trained_run():
    """The files of a run as its stage leaves them, by their path in it; made once."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer = Tokenizer.train(["a red shoe", "a blue shoe"], 300)
        tokenizer.save(folder / "tokenizer.json")
        write_json(folder / "config.json", CONFIG)
        write_json(folder / "stage.json", {"stage": "metatrain", "learner": "maml", "seed": 0})
        method = {"folder": ".", "arm": "fine-tuning", "rate": 0.1, "steps": 2}
        write_json(folder / "serving.json", {"sentiment": method, "questions": method})
        config = run_config.read(folder)
        run_config.write(config, folder)
        model = model_of(config, tokenizer)
        shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
        meta = {"params": jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes)}
        state = init_state(meta, fixed({"o": 1.0}), optax.sgd(0.1), jax.random.key(0))
        checkpoint.save(folder / checkpoint.FOLDER, state)
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def make_run(folder, name):
    for path, content in trained_run().items():
        (folder / "run" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "run" / path).write_bytes(content)
    if name != run_config.FILE:  # in a folder that was written before there was one
        (folder / "run" / run_config.FILE).unlink()
    if name == "stage.json":
        (folder / "run" / "serving.json").unlink()
    return folder / "run" / name


def make_work_config(folder):
    write_config(FrozenConfigDict({"a": 1, "b": {"c": (1, 2)}}), folder)
    return folder / "config.json"


def make_outcome(folder):
    cell = folder / "5w1s" / "maml" / "seed0"
    outcome_of(cell, FrozenConfigDict({"a": 1}), lambda: {"x": np.arange(60.0), "y": np.ones(2)})
    return cell / OUTCOME


def make_metrics(folder):
    lines = [json.dumps({"step": 2 * step, "loss": 1 / (1 + step)}) for step in range(9)]
    (folder / METRICS).write_text("\n".join(lines) + "\n")
    return folder / METRICS


def make_omniglot(folder):
    stream = io.BytesIO()
    Image.fromarray(np.ones((28, 28), bool)).save(stream, "PNG")
    with zipfile.ZipFile(folder / "omniglot.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            name = f"omniglot/images/Greek/character01/0001_{number:02}.png"
            archive.writestr(name, stream.getvalue())
    return folder / "omniglot.zip"


def make_pictures(folder):
    content = b"\0\0\x08\x03" + struct.pack(">III", 30, 2, 2) + bytes(120)
    (folder / "images.gz").write_bytes(gzip.compress(content))
    return folder / "images.gz"


def make_split(folder, which):
    images, labels = mnist.FILES["test"]
    make_pictures(folder).rename(folder / images)
    make_labels(folder).rename(folder / labels)
    return folder / (images, labels)[which]


ROWS = {
    "products": [{"id": f"p{i}", "title": f"shoe {i}", "category": "ab"[i % 2],
                  "attributes": {"colour": "red"}, "image": "images/p.png"} for i in range(3)],
    "reviews": [{"id": f"r{i}", "text": "good", "stars": 4, "product": "p1"} for i in range(3)],
    "questions": [{"id": "q", "question": "how?", "text": "so it is", "answers": [[0, 2], [3, 5]]}],
    "interactions": [{"user": "u", "product": f"p{i}", "time": i} for i in range(3)],
}  # fmt: skip


def make_part(folder, name):
    domain = folder / "shop"
    (domain / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), "red").save(domain / "images" / "p.png")
    for part, rows in ROWS.items():
        (domain / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return domain / name


def domain_of(path):
    return read_domain(next(one for one in path.parents if one.name == "shop"))


READERS = {
    "run config": (partial(make_run, name=run_config.FILE), load_run, RUN_ERRORS),
    "run's config": (partial(make_run, name="config.json"), load_run, RUN_ERRORS),
    "serving": (partial(make_run, name="serving.json"), load_run, RUN_ERRORS),
    "stage": (partial(make_run, name="stage.json"), load_run, RUN_ERRORS),
    "run's tokenizer": (partial(make_run, name="tokenizer.json"), load_run, RUN_ERRORS),
    "config": (make_work_config, lambda path: read_config(path.parent), ConfigError),
    "outcome": (
        make_outcome,
        lambda path: outcomes_in(path.parents[3], "5w1s/maml", 1),
        ConfigError,
    ),
    "metrics": (make_metrics, lambda path: metrics_in(path.parent), CheckpointError),
    "omniglot": (make_omniglot, omniglot.read_archive, OmniglotError),
    "pictures": (make_pictures, mnist.read_idx, MnistError),
    "images of a split": (
        partial(make_split, which=0),
        lambda path: mnist.read_files(path.parent, "test"),
        MnistError,
    ),
    "labels of a split": (
        partial(make_split, which=1),
        lambda path: mnist.read_files(path.parent, "test"),
        MnistError,
    ),
    **{
        f"{name}.jsonl": (partial(make_part, name=f"{name}.jsonl"), domain_of, CatalogueError)
        for name in ROWS
    },
    "picture": (partial(make_part, name="images/p.png"), domain_of, CatalogueError),
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


SLOW = {"run config", "run's config", "run's tokenizer", "serving", "stage", "outcome", "picture"}
"""Readers that take tens of milliseconds."""


def check_reader(name, change, examples):
    """Reads a file of this reader as `change`, a strategy of changes to its bytes, makes it."""
    make, reads, error = READERS[name]

    @settings(max_examples=examples, deadline=None, database=None)
    @given(change=change)
    def check(change):
        with tempfile.TemporaryDirectory() as folder:
            path = make(Path(folder))
            path.write_bytes(change(path.read_bytes()))
            try:
                reads(path)
            except error as fault:
                assert folder in str(fault)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_mutated_bytes_are_one_error_or_read(name):
    """Fault: a library's own error comes out of a reader, a dozen kinds of them."""
    change = edits.map(lambda edits: lambda content: mutated(content, edits))
    check_reader(name, change, 8 if name in SLOW else 60)


JSON = (
    *("results", "tokenizer", "run config", "run's config", "run's tokenizer", "serving", "stage"),
)
JSON_LINES = ("metrics", *(f"{part}.jsonl" for part in ROWS))
odd_values = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1e308,
        float("nan"),
        2**70,
        "",
        "text",
        "1",
        [],
        [1],
        {},
        {"a": 1},
        [[[]]],
        "x" * 300,
        "\0",
    ]
)


def retyped(content, share, value):
    """Replaces one value of JSON, or of JSON lines, by one of another type."""
    lines = content.decode().splitlines()
    try:
        found = [json.loads(content)]
    except ValueError:
        found = [json.loads(line) for line in lines]
    places = [(found, 0)]
    for holder, key in places:  # which grows
        inner = holder[key]
        if isinstance(inner, dict | list):
            keys = inner if isinstance(inner, dict) else range(len(inner))
            places += [(inner, one) for one in keys]
    holder, key = places[int(share * (len(places) - 1))]
    holder[key] = value
    return "\n".join(map(json.dumps, found)).encode()


@pytest.mark.slow
@pytest.mark.parametrize("name", (*JSON, *JSON_LINES))
def test_values_of_another_type_are_one_error_or_read(name):
    """Faults: a KeyError, a TypeError or an AttributeError where JSON holds what nobody wrote; a
    size without bounds fills the memory."""
    change = st.tuples(st.floats(0, 1), odd_values).map(
        lambda pair: lambda content: retyped(content, *pair)
    )
    check_reader(name, change, 8 if name in SLOW else 25)


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
    with pytest.raises(
        StoredError, match="has to be float32|has values that are not finite|not JSON|damaged"
    ):
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
