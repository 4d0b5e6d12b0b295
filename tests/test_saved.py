"""A saved guide answers as before, adapts further, and is whole or one error."""

import dataclasses
import hashlib
import json
import os
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import metaguide
from metaguide import saved
from metaguide.data.catalogue import Domain, Product, Question, Review
from metaguide.data.histories import History
from metaguide.data.tokenizer import Tokenizer
from metaguide.guide import AdaptedGuide, Guide, model_of, reading_of
from metaguide.methods import IN_GUIDE, adaptation_of
from metaguide.optimizers import pretrained
from metaguide.tasks import Serving
from metaguide.tasks.sentiment import sentiment
from metaguide.training.checkpoint import CheckpointError
from tests.test_guide import DOMAIN, OPTIMIZER, PRODUCTS, RUN, WORDS, drawn, theta
from tests.test_hostile_files import mutated, odd_values, retyped

USERS = (History("u", ("phone0", "shoe1")), History("v", ()))
BATCHES = (PRODUCTS, DOMAIN.reviews, DOMAIN.questions, USERS)
ALL = ("classification", "sentiment", "questions", "recommendation")


@pytest.fixture(scope="module")
def tokenizer():
    texts = [p.title for p in PRODUCTS] + [r.text for r in DOMAIN.reviews] + [*WORDS]
    texts += [f"{q.question} {q.text}" for q in DOMAIN.questions]
    return Tokenizer.train(texts * 2, 340)


def guide_of(tokenizer, config=RUN, rule=None, **methods):
    """A guide served by (method, learning rate or penalty, steps) of each task."""
    model = model_of(config, tokenizer)
    meta = {"params": drawn(model, 0)}
    if rule is not None:
        meta["rule"] = jax.tree.map(lambda leaf: leaf + 0.01, theta(0))
    serving = {task: Serving(meta, *how, rule) for task, how in methods.items()}
    return Guide(model, reading_of(config, tokenizer), serving, config, "runs/guide")


def answers(adapted):
    """What a guide answers in the tasks that it adapted to."""
    return {
        task: adapted.predict(batch)
        for task, batch in zip(ALL, BATCHES, strict=True)
        if task in adapted.adapted
    }


@pytest.fixture(scope="module")
def small(tokenizer):
    """A guide that compiles and loads quickly."""
    return guide_of(tokenizer, classification=("prototypical", 0.0, 0), sentiment=("ridge", 0.1, 0))


@pytest.fixture(scope="module")
def adapted(small):
    return small.adapt(DOMAIN, shots=2)


@pytest.fixture(scope="module")
def folder(adapted, tmp_path_factory):
    """A saved guide; nothing in it is changed."""
    path = tmp_path_factory.mktemp("saved") / "garden.guide"
    adapted.save(path)
    return path


CASES = {
    "gradient descent": (
        {"classification": ("maml", 0.3, 2), "sentiment": ("map-head", 30.0, 0)}
        | {"questions": ("head-only", 0.3, 2), "recommendation": ("head-only", 0.3, 2)},
        {"shots": 2},
    ),
    "on features": (
        {"classification": ("prototypical", 0.0, 0), "sentiment": ("logistic", 1.0, 0)},
        {"shots": 1, "seed": 3},
    ),
    "unlabelled": (
        {"classification": ("soft-k-means", 0.0, 0), "sentiment": ("soft-k-means", 0.0, 0)},
        {"shots": 1, "unlabelled": 2},
    ),
    "a learned optimizer": (
        {"sentiment": ("lstm-head", 1.0, 2), "recommendation": ("lstm-head", 1.0, 2)},
        {"shots": 2},
    ),
    "no shots": (
        {"classification": ("maml", 0.3, 2), "sentiment": ("map-head", 30.0, 0)},
        {"shots": 0},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_loaded_guide_answers_as_before_to_the_bit(tokenizer, tmp_path, name):
    """Faults: a state, a context, a rule, a rate, a class or a note is lost, or is another task's;
    what was adapted to nothing comes back adapted; a product loses its popularity."""
    methods, arguments = CASES[name]
    rule = OPTIMIZER if "learned" in name else None
    before = guide_of(tokenizer, rule=rule, **methods).adapt(DOMAIN, **arguments)
    expected = answers(before)
    before.save(tmp_path / "garden.guide")
    after = metaguide.load(tmp_path / "garden.guide")
    assert isinstance(after, AdaptedGuide) and set(after.adapted) == set(methods)
    assert answers(after) == expected
    assert (after.shots, after.notes, after.domain.name) == (before.shots, before.notes, "shop")
    assert after.domain.interactions == after.domain.reviews == after.domain.questions == ()
    for task, one in before.adapted.items():
        found = after.adapted[task]
        assert (found.chosen, found.classes) == (one.chosen, one.classes)
        assert [each.id for each in found.unlabelled] == [each.id for each in one.unlabelled]
        assert (len(one.unlabelled) > 0) == ("unlabelled" in arguments)
        serving, known = after.guide.serving[task], before.guide.serving[task]
        assert serving[1:4] == known[1:4] and serving.is_trained
        assert (serving.rule and serving.rule.name) == (rule and rule.name)
        jax.tree.map(np.testing.assert_array_equal, serving.meta, known.meta)


@pytest.mark.slow
def test_a_state_is_parameters_unless_features_are_classified(tokenizer):
    """Fault: a method is added whose state `restore` takes for another."""
    guide = guide_of(tokenizer, sentiment=("maml", 0.3, 1))
    problem, params = sentiment(guide.model), guide.serving["sentiment"].meta["params"]
    rows = {**guide.reading.reader.rows(["good", "bad"], 8), "stars": np.zeros(2, np.float32)}
    support = {**rows, "label": np.arange(2, dtype=np.int32), "mask": np.ones(2, bool)}
    for adaptation in {adaptation_of(name) for name in IN_GUIDE}:
        if adaptation.adapts == "features":
            continue
        rule = pretrained("hyper").rule if adaptation.by == "hyper" else OPTIMIZER
        meta = {"params": params}
        if adaptation.is_learned:
            meta["rule"] = jax.eval_shape(rule.init, jax.random.key(0))
        learner = adaptation.tuned_to(problem, 0.1, 1, rule)
        state, _ = jax.eval_shape(learner.adapt, meta, support, {}, None)
        assert jax.tree.structure(state) == jax.tree.structure(params), adaptation


@pytest.mark.slow
def test_pictures_and_ngrams_are_kept(tokenizer, tmp_path):
    """Faults: the picture of an example is lost, or those of others are kept in their place."""
    config = dataclasses.replace(RUN, image=True, buckets=16)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    products = tuple(
        dataclasses.replace(one, image=image) for one, image in zip(PRODUCTS, pixels, strict=True)
    )
    domain = Domain("a/b. 店", products, interactions=DOMAIN.interactions)
    methods = {"classification": ("ridge", 0.1, 0), "recommendation": ("zero-shot", 0.0, 0)}
    before = guide_of(tokenizer, config, **methods).adapt(domain, shots=1)
    before.save(tmp_path / "garden.guide")
    after = metaguide.load(tmp_path / "garden.guide")
    assert after.predict(products) == before.predict(products)
    assert after.domain == Domain(domain.name, products)
    assert after.adapted["classification"].support == before.adapted["classification"].support


def test_what_is_not_needed_is_not_kept_and_nothing_twice(adapted, folder):
    """Faults: the reviews of a shop leave it; the parameters of each task are stored again; a
    product that only names a category is kept with all others."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    own = {"guide.json", "arrays.safetensors", "tokenizer.json"}
    examples = {"products/products.jsonl", "support/products.jsonl", "support/reviews.jsonl"}
    assert names == own | examples
    kept = [json.loads(line) for line in (folder / "support/reviews.jsonl").open()]
    assert tuple(row["id"] for row in kept) == adapted.adapted["sentiment"].chosen
    assert len((folder / "products/products.jsonl").read_text().splitlines()) == len(WORDS)
    arrays = load_file(folder / "arrays.safetensors")
    content = [(array.dtype, array.shape, array.tobytes()) for array in arrays.values()]
    assert len(set(content)) == len(content)
    origin = json.loads((folder / "guide.json").read_text())["origin"]
    assert origin["source"] == "runs/guide" and origin["jax"] == jax.__version__


@pytest.mark.slow
def test_adapting_further_is_adapting_at_once(tokenizer, small, tmp_path):
    """Faults: further examples replace those of before; their order or a category is lost; a task
    without new examples adapts anew, or what a guide adapts to depends on where it came from; a
    review of a product that is not kept cannot be kept either."""
    first = (*PRODUCTS[:2], PRODUCTS[3], DOMAIN.reviews[0], DOMAIN.reviews[1])
    boot = Product("boot", "it walks too", category="boot")
    new = Review("new", "good good", sentiment="positive", product="phone2")
    more = (boot, PRODUCTS[4], new)
    with pytest.warns(UserWarning, match="category 'shoe' has no examples"):
        begun = small.adapt(DOMAIN, support=first)
        expected = answers(small.adapt(DOMAIN, support=(*first, *more)))
    assert answers(begun) != expected
    begun.save(tmp_path / "garden.guide")
    for one in (begun, metaguide.load(tmp_path / "garden.guide")):
        with pytest.warns(UserWarning, match="category 'shoe' has no examples"):
            further = one.adapt(support=iter(more))
        assert answers(further) == expected
        assert further.categories == ("boot", "novel", "phone", "shoe")
        twice = one.adapt(support=[new])
        assert twice.adapted["classification"] is one.adapted["classification"]
        assert twice.notes == one.notes
        assert twice.predict(DOMAIN.reviews) == expected["sentiment"]
        # The label that is given last is right.
        other = twice.adapt(support=[dataclasses.replace(new, sentiment="negative")])
        assert other.adapted["sentiment"].chosen == ("r0", "r1", "new")
        assert other.predict(DOMAIN.reviews) != expected["sentiment"]
    further.save(tmp_path / "garden.guide")
    assert answers(metaguide.load(tmp_path / "garden.guide")) == expected
    with pytest.raises(ValueError, match="support holds examples of questions, which this guide"):
        begun.adapt(support=[Question("q", "who?", "it is Ann")])
    drawn_ = small.adapt(DOMAIN, shots=1)
    chosen = [r for id in drawn_.adapted["sentiment"].chosen for r in DOMAIN.reviews if r.id == id]
    with pytest.warns(UserWarning):
        at_once = small.adapt(DOMAIN, support=[*chosen, new])
    found = drawn_.adapt(support=[new])
    assert found.predict(DOMAIN.reviews) == at_once.predict(DOMAIN.reviews)


@pytest.mark.slow
def test_what_was_read_without_labels_is_read_again(tokenizer, tmp_path):
    """Faults: further adaptation forgets the reviews without labels, reads one with a label twice,
    or writes a label that nobody gave."""
    reviews = (*DOMAIN.reviews, Review("plain", "good bad"), Review("other", "good 7 good"))
    guide = guide_of(tokenizer, sentiment=("soft-k-means", 0.0, 0))
    begun = guide.adapt(Domain("shop", reviews=reviews), support=reviews[:2], unlabelled=4)
    ids = {one.id for one in begun.adapted["sentiment"].unlabelled}
    assert len(ids) == 4
    begun.save(tmp_path / "garden.guide")
    text = (tmp_path / "garden.guide" / "unlabelled.jsonl").read_text()
    assert "stars" not in text and {json.loads(line)["id"] for line in text.splitlines()} == ids
    after = metaguide.load(tmp_path / "garden.guide")
    assert answers(after) == answers(begun)
    label = dataclasses.replace(next(one for one in reviews if one.id in ids), stars=5.0)
    for one in (begun, after):
        further = one.adapt(support=[label]).adapted["sentiment"]
        assert {each.id for each in further.unlabelled} == ids - {label.id}
        assert further.chosen == ("r0", "r1", label.id)


def test_what_stands_there_is_replaced_whole_or_not_at_all(adapted, small, tmp_path, monkeypatch):
    """Faults: a fault in writing leaves half a guide, or none, or a hidden folder; a folder that is
    none is overwritten, or a file in a saved guide that is none of its own."""
    path = tmp_path / "garden.guide"
    path.mkdir()  # nothing is lost with an empty folder
    adapted.save(str(path))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    other = small.adapt(DOMAIN, shots=1)
    for error in (OSError("no room"), KeyboardInterrupt()):
        with monkeypatch.context() as patch:

            def full(*_, error=error):
                raise error

            patch.setattr(saved, "write_json", full)
            with pytest.raises((CheckpointError, KeyboardInterrupt)):
                other.save(path)
        with monkeypatch.context() as patch:
            replaced = os.replace

            def once(old, new, error=error):
                if os.path.basename(new) == path.name and str(old).endswith(".new"):
                    raise error
                replaced(old, new)

            patch.setattr("metaguide.files.os.replace", once)
            with pytest.raises((CheckpointError, KeyboardInterrupt)):
                other.save(path)
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
        assert list(tmp_path.iterdir()) == [path]
    other.save(path)
    assert metaguide.load(path).shots == 1 and list(tmp_path.iterdir()) == [path]
    (path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes.txt: this is no part of a saved guide"):
        adapted.save(path)
    (tmp_path / "shop" / "products").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="shop/products: this is no part of a saved guide"):
        adapted.save(tmp_path / "shop")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="file: it is no folder"):
        adapted.save(tmp_path / "file")
    assert (path / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_guide_that_nothing_describes_is_not_saved(adapted, tokenizer, tmp_path):
    """Faults: a guide is written that cannot be read again."""
    plain = dataclasses.replace(adapted, guide=dataclasses.replace(adapted.guide, config=None))
    with pytest.raises(ValueError, match="put together by hand"):
        plain.save(tmp_path / "guide")
    rule = OPTIMIZER._replace(kind="momentum")
    served = {"sentiment": adapted.guide.serving["sentiment"]._replace(rule=rule)}
    guide = dataclasses.replace(adapted.guide, serving=served)
    with pytest.raises(ValueError, match="momentum.* makes the steps, which is none of lstm"):
        dataclasses.replace(adapted, guide=guide, adapted={}).save(tmp_path / "guide")
    assert not list(tmp_path.iterdir())


FILES = ("guide.json", "arrays.safetensors", "tokenizer.json", "products/products.jsonl")
FILES += ("support/products.jsonl", "support/reviews.jsonl")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_error_that_names_it(folder, tmp_path, name):
    """Faults: a file that is missing, cut in half, changed in one byte or no file at all is a raw
    error, hangs, or is read as if nothing were."""
    copy = tmp_path / "guide"
    shutil.copytree(folder, copy)
    path = copy / name
    content = path.read_bytes()
    middle = len(content) // 2
    changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for bad in (b"", content[:middle], changed, content + content):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=f"{name}: .*; copy the folder again, or save"):
            metaguide.load(copy)
    for put in (lambda path: None, os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
        path.unlink() if not path.is_dir() else path.rmdir()
        put(path)
        with pytest.raises(CheckpointError, match=f"{name}: .*; copy the folder again, or save"):
            metaguide.load(copy)
        if not os.path.lexists(path):
            path.write_bytes(b"")
    path.unlink()


def test_a_changed_value_of_the_description_is_noticed(folder, tmp_path):
    """Fault: a number is changed, and rankings are others without a word."""
    copy = tmp_path / "guide"
    shutil.copytree(folder, copy)
    text = (copy / "guide.json").read_text()
    (copy / "guide.json").write_text(text.replace('"shots": 2', '"shots": 3'))
    with pytest.raises(CheckpointError, match="guide.json: it is not as it was written; copy"):
        metaguide.load(copy)
    (copy / "guide.json").write_text(json.dumps(json.loads(text)))  # other white space
    assert metaguide.load(copy).shots == 2


def sealed(folder, change):
    """Change the description of a saved guide, and make its checksum right again."""
    path = folder / "guide.json"
    found = json.loads(path.read_text())
    found.pop("sha256", None)
    found = change(found)
    if isinstance(found, dict):
        content = json.dumps(found, sort_keys=True).encode()
        found = {**found, "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("version",), 5, "version is 5, and this metaguide reads 4; update metaguide"),
        (("version",), 0, "version is 0; give 4, or save the guide again"),
        (("shots",), 10**9, "shots is 1000000000; give a whole number"),
        (("model", "version"), 99, "version is 99, .*; update metaguide"),
        (("model", "width"), 10**9, "width is 1000000000; give a whole number from 1 to 16384"),
        (("model", "width"), 16, "classification.meta.params.* is float32.*, not float32"),
        (("model", "vocabulary"), 299, "tokenizer.json: it has .* ids, .* with 299"),
        (("tasks", "sentiment", "adapted", "classes"), ["a"], "classes or examples of sentiment"),
        (("tasks", "sentiment", "adapted", "support"), [], "classes or examples of sentiment"),
        (("tasks", "sentiment", "rule"), {"kind": "lstm", "settings": {"layers": 10**9}}, "rule"),
        (("same",), {}, "meta.params.*is missing"),
        (("files",), {}, "it lists no arrays.safetensors"),
        (("files", "../passwd"), {"bytes": 9, "sha256": ""}, "files names '../passwd'"),
        (("files", "products/products.jsonl", "bytes"), 2**40, "bytes is .*; give a whole number"),
    ],
)
def test_a_description_of_something_else_is_one_error(folder, tmp_path, field, value, message):
    """Faults: a newer guide is read as one of today; a size without bounds fills the memory; arrays
    of another shape are served; a path leads out of the folder."""
    copy = tmp_path / "guide"
    shutil.copytree(folder, copy)

    def change(found):
        *way, last = field
        holder = found
        for key in way:
            holder = holder[key]
        holder[last] = value
        return found

    sealed(copy, change)
    with pytest.raises(CheckpointError, match=message) as error:
        metaguide.load(copy)
    assert str(copy) in str(error.value)


def test_arrays_of_other_shapes_are_one_error(folder, tmp_path):
    """Fault: an array with a valid checksum and another shape or dtype is served."""
    for number, change in enumerate((lambda a: a[..., None], lambda a: a.astype(np.float16))):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        arrays = load_file(copy / "arrays.safetensors")
        name = next(name for name in arrays if ".adapted.state." in name)
        save_file({**arrays, name: change(arrays[name])}, copy / "arrays.safetensors")
        content = (copy / "arrays.safetensors").read_bytes()
        seal = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

        def change_seal(found, seal=seal):
            return {**found, "files": {**found["files"], "arrays.safetensors": seal}}

        sealed(copy, change_seal)
        with pytest.raises(CheckpointError, match=f"guide.json.*{name} is float.*, not float32"):
            metaguide.load(copy)


@pytest.mark.slow
def test_whatever_the_bytes_it_is_one_error_or_the_same_answers(adapted, folder, tmp_path):
    """Fault: some bytes raise another error, or other answers without a word."""
    copy = tmp_path / "guide"
    shutil.copytree(folder, copy)
    expected = answers(adapted)
    edit = st.tuples(
        st.floats(0, 1),
        st.sampled_from(["flip", "cut", "insert"]),
        st.binary(min_size=1, max_size=2),
    )

    @settings(max_examples=40, deadline=None, database=None)
    @given(st.sampled_from(FILES), st.lists(edit, min_size=1, max_size=2))
    def check_bytes(name, edits):
        (copy / name).write_bytes(mutated((folder / name).read_bytes(), edits))
        try:
            assert answers(metaguide.load(copy)) == expected
        except CheckpointError as error:
            assert str(copy) in str(error)
        finally:
            shutil.copyfile(folder / name, copy / name)

    @settings(max_examples=40, deadline=None, database=None)
    @given(st.floats(0, 1), odd_values)
    def check_values(share, value):
        try:
            sealed(
                copy, lambda found: json.loads(retyped(json.dumps(found).encode(), share, value))
            )
            metaguide.load(copy)
        except CheckpointError as error:
            assert str(copy) in str(error)
        finally:
            shutil.copyfile(folder / "guide.json", copy / "guide.json")

    check_bytes()
    check_values()
