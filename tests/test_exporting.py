"""An exported guide answers as the guide does, without metaguide, or is not written at all."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import metaguide
from metaguide import exporting
from metaguide.cli import main
from metaguide.data.catalogue import Domain, Product, Review
from metaguide.data.ngrams import WORD, hashed_ngrams
from metaguide.data.texts import product_text
from metaguide.exporting import ExportError, answer, export, folder, head
from metaguide.exporting.graph import Input, to_onnx
from metaguide.types import HASHES
from tests.pretrained.conftest import write as write_encoder
from tests.test_guide import DOMAIN, PRODUCTS, RUN
from tests.test_saved import guide_of, tokenizer  # noqa: F401  a fixture

LONG = "bad good " * 30
WRITTEN = ("bad", "", "good 7 [SEP] good", "手机很好 ½", LONG)
REVIEWS = tuple(Review(f"n{i}", text) for i, text in enumerate(WRITTEN))
ASKED = tuple(
    Product(f"n{i}", text, attributes={"colour": "red"}) for i, text in enumerate(WRITTEN)
)


KNOWN = ("the phone is good", "bad screen", "screen is bad", "not the phone", "手 很 好", "好 机")
"""Texts in words of the small encoders."""

SHOP = Domain(
    "a shop",
    tuple(
        Product(f"p{i}", text, category=("phone", "shoe", "novel")[i % 3])
        for i, text in enumerate(KNOWN)
    ),
    tuple(Review(f"r{i}", text, stars=1.0 + 4 * (i % 2)) for i, text in enumerate(KNOWN)),
)


def chances(adapted, examples):
    """The probabilities that a guide gives, [examples, classes]."""
    found = adapted.predict(list(examples))
    if hasattr(found[0], "positive"):
        return np.array([[1 - one.positive, one.positive] for one in found])
    return np.array([list(one.probabilities.values()) for one in found])


def texts_of(examples):
    return [product_text(one) if isinstance(one, Product) else one.text for one in examples]


def assert_answers(path, adapted, examples, pictures=()):
    """The export answers any number of examples as the guide does, and one as among others."""
    read, known = answer.load(path), chances(adapted, examples)
    texts = texts_of(examples)
    for count in (1, 3, len(texts)):
        given = pictures[:count] if pictures else ()
        found = answer.answer(read, texts[:count], given)["probabilities"]
        np.testing.assert_allclose(found, known[:count], atol=2e-5)
    last = pictures[-1:] if pictures else ()
    alone = answer.answer(read, texts[-1:], last)["probabilities"]
    np.testing.assert_allclose(alone, known[-1:], atol=2e-5)
    rows = answer.inputs(read, texts, pictures)
    if "mask" in rows:  # which alone says what is padding
        rows["tokens"][rows["mask"] == 0] = 7
        found = read.session.run(["probabilities"], rows)[0]
        np.testing.assert_allclose(found, known, atol=2e-5)


SERVED = {
    "gradient descent": ({"classification": ("maml", 0.3, 2), "sentiment": ("maml", 0.3, 2)}, {}),
    "closed form": (
        {"classification": ("ridge", 0.1, 0), "sentiment": ("map-head", 30.0, 0)},
        {"buckets": 16},
    ),
    "nearest": (
        {"classification": ("soft-k-means", 0.0, 0), "sentiment": ("prototypical", 0.0, 0)},
        {"buckets": 16, "image": True},
    ),
    "n-grams alone": (
        {"classification": ("head-only", 0.3, 2), "sentiment": ("logistic", 1.0, 0)},
        {"buckets": 16, "layers": 0},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "sentiment"])
@pytest.mark.parametrize("name", SERVED)
def test_a_model_answers_as_the_guide(tokenizer, tmp_path, name, task):  # noqa: F811
    """Faults: the batch, the length or the number of n-grams is that of the trace; padding is read;
    a text is cut, or its specials are read, otherwise; class names are those of other parameters;
    a picture, or that there is none, is lost; n-grams are hashed otherwise."""
    methods, fields = SERVED[name]
    guide = guide_of(tokenizer, dataclasses.replace(RUN, **fields), **methods)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    pictured = tuple(
        dataclasses.replace(one, image=image) for one, image in zip(PRODUCTS, pixels, strict=True)
    )
    reads = fields.get("image", False)
    domain = dataclasses.replace(DOMAIN, products=pictured if reads else PRODUCTS)
    adapted = guide.adapt(domain, shots=2)
    found = export(adapted, tmp_path / "out", task=task)
    assert found.task == task and 0 <= found.difference < 2e-5
    assert found.bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    onnx.checker.check_model(str(tmp_path / "out/model.onnx"), full_check=True)
    base, more = (domain.products, ASKED) if task == "classification" else (DOMAIN.reviews, REVIEWS)
    examples = [*(base * 8)[:65], *more]
    pictures = [getattr(one, "image", None) for one in examples]
    assert_answers(tmp_path / "out", adapted, examples, pictures if reads else ())
    about = json.loads((tmp_path / "out/export.json").read_text())
    assert about["classes"] == list(adapted.adapted[task].classes)
    assert about["compared"] == {
        "examples": found.examples,
        "largest_difference": found.difference,
    }
    reads_stars = "stars" in about["outputs"]
    assert reads_stars == (task == "sentiment" and methods[task][0] == "maml")
    if reads_stars:
        stars = answer.answer(answer.load(tmp_path / "out"), ["good"])["stars"]
        known = adapted.predict([Review("0", "good")])[0].stars
        np.testing.assert_allclose(stars, [known], atol=1e-4)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write_encoder(root / kind, kind) for kind in ("bert", "e5", "xlm-roberta")}


def on_encoder(folder_, cases=SHOP, pooling="mean", **arguments):
    guide = metaguide.from_encoder(folder_, prefix="the ", length=12, pooling=pooling)
    return guide.adapt(cases, **{"shots": 2, **arguments})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "task"),
    [("bert", "classification"), ("e5", "sentiment"), ("xlm-roberta", "sentiment")],
)
def test_a_pretrained_encoder_is_part_of_the_model(encoders, tmp_path, kind, task):
    """Faults: the prefix, the mask, the pooling or the special tokens are lost; a name of a special
    token in a text becomes one; a vector is not rounded as the guide rounds it."""
    adapted = on_encoder(encoders[kind], pooling="cls" if kind == "e5" else "mean", unlabelled=2)
    export(adapted, tmp_path / "out", task=task)
    about = json.loads((tmp_path / "out/export.json").read_text())
    assert about["prefix"] == "the " and about["most_tokens"] == 12
    grams = ["grams"] if task == "classification" else []  # its own method reads them
    assert list(about["inputs"]) == ["tokens", "mask", *grams]
    base, more = (SHOP.products, ASKED) if task == "classification" else (SHOP.reviews, REVIEWS)
    with pytest.warns(metaguide.pretrained.CutTexts):
        assert_answers(tmp_path / "out", adapted, [*(base * 8)[:65], *more])
    # Names of classes alone tell them apart without examples.
    if task == "classification":
        export(on_encoder(encoders[kind], shots=0), tmp_path / "out", task=task)
        with pytest.warns(metaguide.pretrained.CutTexts):
            assert_answers(tmp_path / "out", on_encoder(encoders[kind], shots=0), ASKED)


@pytest.mark.slow
def test_a_trained_encoder_reads_the_ids_of_its_own_tokenizer(encoders, tmp_path):
    """Faults: ids are those that the guide gives its tokens; padding is known by the wrong id."""
    from metaguide.guide import Guide, description_of, model_of, reading_of, tuning_of
    from metaguide.pretrained import load_encoder, tuned_params
    from metaguide.tasks import Serving
    from tests.test_guide import drawn

    encoder = load_encoder(encoders["xlm-roberta"], prefix="the ", length=12)
    described = description_of(encoder, encoders["xlm-roberta"])
    config = dataclasses.replace(RUN, width=16, encoder_train="lora", encoder_rank=2, **described)
    model = model_of(config, encoder.guide_tokenizer, encoder)
    params = {**drawn(model, 0), **tuned_params(encoder, tuning_of(config))}
    serving = {"sentiment": Serving({"params": params}, "ridge", 0.1, 0)}
    reading = reading_of(config, encoder.guide_tokenizer)
    adapted = Guide(model, reading, serving, config, "run").adapt(SHOP, shots=2)
    export(adapted, tmp_path / "out")
    assert_answers(tmp_path / "out", adapted, [*SHOP.reviews, *REVIEWS])


def probabilities(about, arrays, vectors):
    """What the formulas of `head.json` say, evaluated as Python."""
    known = {
        "mean": lambda a: a.mean(1, keepdims=True),
        "sum": lambda a: a.sum(1, keepdims=True),
        "sqrt": np.sqrt,
        "softmax": lambda a: np.asarray(jax.nn.softmax(a)),
    }
    known["scaled"] = lambda a: a / np.sqrt(known["mean"](a * a) + 1e-6)
    arrays = {name: one.astype(np.float64) for name, one in arrays.items()}
    known |= {name.replace(".", "_"): one for name, one in arrays.items()}
    half = vectors.astype(np.float16)
    known["h"] = half.astype(np.float64)
    known["m"] = half.mean(1, keepdims=True, dtype=np.float32).astype(np.float16)
    for step in about["formula"]:
        if "rounded" not in step and not step.startswith("scaled(a)"):
            exec(re.sub(r"(?<=[a-z])\.(?=[a-z])", "_", step), known)
    return known["probabilities"]


def trained(encoders, method, task):
    """A guide on vectors whose parameters are drawn, so that none is an identity or zero."""
    from tests.test_guide import drawn

    guide = metaguide.from_encoder(encoders["bert"], prefix="the ", length=12)
    params = drawn(guide.model, 1)
    params["classification"]["log_scale"] = jnp.asarray(1.5)
    params["classification"]["bias"] = jnp.arange(10.0)
    params["fusion"]["bias"] = jnp.linspace(-1.0, 1.0, 16)
    params["pretrained"]["projection"]["bias"] = jnp.linspace(0.0, 1.0, 16)
    served = guide.serving[task]._replace(meta={"params": params}, method=method, is_trained=True)
    return dataclasses.replace(guide, serving={task: served._replace(learning_rate=0.5)})


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "sentiment"])
@pytest.mark.parametrize(
    "method",
    ["ridge", "named-ridge", "logistic", "named-prototypes", "soft-k-means", "map-head"],
)
def test_a_head_is_what_its_description_says(encoders, tmp_path, method, task):
    """Faults: a weight, a bias or an epsilon of a formula is another one; the adapter, the norm,
    the trained head or the names of classes are left out; a class without examples is likely."""
    guide = trained(encoders, method, task)
    boot = Product("boot", "boot", category="boot")
    domain = dataclasses.replace(SHOP, products=(*SHOP.products, boot))
    if task == "classification":  # no example of a boot
        with pytest.warns(UserWarning, match="category 'boot' has no example"):
            adapted = guide.adapt(domain, support=SHOP.products[:4])
    else:
        adapted = guide.adapt(domain, shots=2)
    found = export(adapted, tmp_path / "out", format="vectors", task=task)
    assert found.difference < 2e-5
    about = json.loads((tmp_path / "out/head.json").read_text())
    arrays = load_file(tmp_path / "out/head.safetensors")
    assert about["arrays"] == {name: list(one.shape) for name, one in arrays.items()}
    assert about["vector"]["prefix"] == "the " and about["vector"]["width"] == 16
    examples = [*SHOP.products, *ASKED[:-1]] if task == "classification" else SHOP.reviews
    vectors = guide.reading.reader.vectors(texts_of(examples))
    known = chances(adapted, examples)
    assert known.std(0).max() > 1e-3
    np.testing.assert_allclose(probabilities(about, arrays, vectors), known, atol=1e-4)
    np.testing.assert_allclose(head.probabilities(arrays, vectors), known, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "inputs"), [("tf-idf", ["grams"]), ("vectors+words", ["tokens", "mask", "grams"])]
)
def test_a_regression_on_words_is_exported(encoders, tmp_path, method, inputs):
    """Faults: it reads an encoder in vain, or other n-grams; a text without a known word differs;
    vectors alone are said to be enough."""
    adapted = on_encoder(encoders["bert"])
    served = adapted.guide.serving["sentiment"]._replace(method=method)
    by_words = adapted.served_by("sentiment", served)
    export(by_words, tmp_path / "out", task="sentiment")
    about = json.loads((tmp_path / "out/export.json").read_text())
    assert list(about["inputs"]) == inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", metaguide.pretrained.CutTexts)
        assert_answers(tmp_path / "out", by_words, [*SHOP.reviews, *REVIEWS, Review("0", "!")])
    with pytest.raises(ExportError, match="as onnx"):
        export(by_words, tmp_path / "vectors", task="sentiment", format="vectors")


@pytest.mark.slow
def test_what_names_alone_have_taught_is_exported(encoders, tmp_path):
    """Fault: the head that was never trained is exported in its place."""
    adapted = on_encoder(encoders["bert"], shots=0)
    export(adapted, tmp_path / "out", task="classification")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", metaguide.pretrained.CutTexts)
        assert_answers(tmp_path / "out", adapted, [*SHOP.products, Product("0", "!")])


@pytest.mark.slow
def test_the_folder_runs_without_metaguide(encoders, tmp_path):
    """Faults: the README's Python does not run, or imports metaguide; what it prints is another
    guide's."""
    adapted = on_encoder(encoders["bert"])
    blocked = tmp_path / "blocked" / "metaguide"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise SystemExit('metaguide was imported')")
    (tmp_path / "blocked/jax.py").write_text("raise SystemExit('JAX was imported')")
    environment = {**os.environ, "PYTHONPATH": str(blocked.parent)}
    outputs = {}
    for name in exporting.FORMATS:
        export(adapted, tmp_path / name, format=name, task="sentiment")
        (example,) = re.findall(
            r"```python\n(.*?)```", (tmp_path / name / "README.md").read_text(), re.S
        )
        ran = subprocess.run(
            [sys.executable, "-c", example],
            cwd=tmp_path / name,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        outputs[name] = ran.stdout
    known = chances(adapted, [Review("0", "Quiet and quick.")])[0]
    printed = re.findall(r"\d\.\d+(?:e-\d+)?", outputs["onnx"])
    np.testing.assert_allclose([float(one) for one in printed], known, atol=1e-4)
    ran = subprocess.run(
        [sys.executable, tmp_path / "onnx/answer.py", "Quiet and quick.", "bad"],
        env=environment,
        capture_output=True,
        text=True,
    )
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(rows) == 2 and rows[0]["positive"] == round(float(known[1]), 4)
    for module in (answer, head):
        names = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(ast.parse(open(module.__file__).read()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not any("metaguide" in name or "jax" in name for name in names)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.text("ab 的好,-_É\t", max_size=30), st.integers(1, 30))
def test_ngrams_are_hashed_alike(text, most):
    """Faults: words, pairs or runs differ from those of the guide, in order or at the ends."""
    expected = [number for number in hashed_ngrams([text], most)[0].tolist() if number]
    assert answer.ngrams(text, WORD, HASHES, most) == expected


@pytest.fixture(scope="module")
def small(tokenizer):  # noqa: F811
    guide = guide_of(
        tokenizer, classification=("prototypical", 0.0, 0), sentiment=("ridge", 0.1, 0)
    )
    return guide.adapt(DOMAIN, shots=2)


def test_what_cannot_be_exported_says_why(small, encoders, tmp_path):
    """Faults: another error than one that says what to do; something is written before it."""
    refused = [
        (small, {"format": "tflite"}, r"no format 'tflite'; there are onnx, vectors"),
        (small, {}, "classification and sentiment; give one of them as the task"),
        (small, {"task": "questions"}, "questions is not exported: its answers name parts"),
        (small, {"task": "colour"}, "colour is not exported; give classification or sentiment"),
        (small, {"task": "sentiment", "format": "vectors"}, "only a guide on a frozen pretrained"),
    ]
    without = dataclasses.replace(small, adapted={}, notes={"sentiment": ("no review has one",)})
    refused += [
        (without, {}, "answers none of classification, sentiment; adapt it"),
        (without, {"task": "sentiment"}, "does not answer sentiment: no review has one"),
    ]
    unadapted = trained(encoders, "ridge", "classification").adapt(SHOP, shots=0)
    vectors = {"task": "classification", "format": "vectors"}
    refused += [(unadapted, vectors, "is adapted by no examples, whose state is no classifier")]
    head_only = trained(encoders, "head-only", "sentiment").adapt(SHOP, shots=2)
    heads = r"by head-only, whose .* \(those of ridge, named-ridge, lo"
    refused += [(head_only, {"format": "vectors"}, heads)]
    for guide, arguments, words in refused:
        with pytest.raises(ExportError, match=words):
            export(guide, tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_half_an_export_leaves_nothing(small, tmp_path, monkeypatch):
    """Faults: an export that differs from the guide, or was interrupted, is published or left; a
    folder with something else is replaced."""
    path = tmp_path / "out"
    export(small, path, task="sentiment")
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def full(*_, **__):
        raise OSError("no room")

    def another(self, *_, of=answer.answer):
        return {"probabilities": of(self, *_)["probabilities"] + 2e-4}

    def broken(self, *_, of=answer.answer):
        return {"probabilities": of(self, *_)["probabilities"] * np.nan}

    for module, name, fault, error in (
        (folder, "_compared", interrupted, KeyboardInterrupt),
        (folder.onnx, "save", full, ExportError),
        (answer, "answer", another, ExportError),
        (answer, "answer", broken, ExportError),
    ):
        for target in (path, tmp_path / "new"):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, fault)
                with pytest.raises(error) as caught:
                    export(small, target, task="classification")
            if fault is another:
                assert "differs from the guide's by 2.0e-04" in str(caught.value)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert list(tmp_path.iterdir()) == [path]
    export(small, path, task="classification")
    assert json.loads((path / "export.json").read_text())["task"] == "classification"
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"notes.txt: this is no part of an export"):
        export(small, path, task="sentiment")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="file: it is no folder"):
        export(small, tmp_path / "file", task="sentiment")
    assert (path / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def truth(x):
    return x > 0.1


lax = jax.lax
PRIMITIVES = {
    "arithmetic": lambda x, n, k: -x + x * 2 - x / 3 + abs(x) ** 1.5 + lax.integer_pow(x, 3),
    "powers": lambda x, n, k: abs(x) ** abs(x) + lax.square(x) + x**2,
    "functions": lambda x, n, k: jnp.exp(x) + jnp.tanh(x) + lax.logistic(x) + lax.erf(x),
    "positive": lambda x, n, k: jnp.log(abs(x) + 1) + jnp.log1p(x * x) + lax.rsqrt(x * x + 1),
    "bounds": lambda x, n, k: jnp.maximum(x, -x) * jnp.minimum(x, 0.1) + jnp.sqrt(abs(x)),
    "clamp": lambda x, n, k: lax.clamp(-0.3, x, 0.4) + jnp.floor(x),
    "equal": lambda x, n, k: (n == 2) | (n != 3) & ~(n == 1),
    "order": lambda x, n, k: (x < 0.5) & (n <= 2) & (n > 0) | (n >= 3),
    "truth": lambda x, n, k: jnp.maximum(~truth(x), n > 2) | jnp.minimum(truth(x), n > 1),
    "reductions": lambda x, n, k: x.sum(1) + x.max(1) - x.min(1),
    "quantifiers": lambda x, n, k: jnp.stack([truth(x).any(1), truth(x).all(1)]),
    "finite": lambda x, n, k: jnp.isfinite(jnp.where(truth(x), x, x / jnp.floor(abs(x) / 2))),
    "casts": lambda x, n, k: n.astype(jnp.float32) + k.astype(jnp.float16).astype(jnp.float32),
    "hashes": lambda x, n, k: (k * jnp.uint32(0x9E3779B9) >> 23) % jnp.uint32(7),
    "below zero": lambda x, n, k: lax.rem(-n * 5, jnp.full_like(n, 3)),
    "unsigned": lambda x, n, k: k - jnp.uint32(3) + (-n).astype(jnp.uint32) // jnp.uint32(5),
    "running": lambda x, n, k: jnp.cumsum(x, axis=1) + lax.cumsum(x, axis=1, reverse=True),
    "shapes": lambda x, n, k: jnp.expand_dims(x, 2).transpose(2, 1, 0) + x.T[None],
    "joined": lambda x, n, k: jnp.concatenate([x, jnp.stack([x[:, 0], x[:, 1]], axis=1)], axis=1),
    "parts": lambda x, n, k: (
        lax.slice_in_dim(x, 1, 4, 2, axis=1) + lax.split(x, (1, 2, 2), axis=1)[2]
    ),
    "columns": lambda x, n, k: x[:, 1] + lax.squeeze(x[:, :1], (1,)),
    "barrier": lambda x, n, k: lax.optimization_barrier(jnp.copy(x)),
    "padding": lambda x, n, k: jnp.pad(x, ((0, 0), (2, 1)), constant_values=3.0).reshape(-1, 4),
    "rows": lambda x, n, k: jnp.arange(12.0).reshape(4, 3)[n],
    "window": lambda x, n, k: jnp.arange(40.0).reshape(8, 5)[: x.shape[0]] * x,
    "grid": lambda x, n, k: lax.broadcasted_iota(jnp.int32, x.shape, 0) * 9 + n + x.shape[0],
    "line": lambda x, n, k: jnp.arange(x.shape[0]),
    "entries": lambda x, n, k: jnp.zeros_like(x).at[jnp.arange(x.shape[0])[:, None], n].add(x),
    "products": lambda x, n, k: x @ jnp.arange(10.0).reshape(5, 2) + x[:, :2] @ (jnp.eye(2) + 1).T,
    "outer": lambda x, n, k: jnp.einsum("bi,bj->bij", x, 2 * x),
    "batches": lambda x, n, k: jnp.einsum("bij,bkj->bik", x[..., None], x[..., None] + 1),
    "grams": lambda x, n, k: jnp.einsum("bi,bj->ij", x, x) + jnp.einsum("bi,bi->", x, x),
    "deferred": lambda x, n, k: (jnp.broadcast_to(x[:1], x.shape) * 2 + 1).reshape(-1),
    "broadcast": lambda x, n, k: (
        (jnp.ones(5) + x[:, :1]) * lax.stop_gradient(jnp.arange(5.0)[None])
    ),
    "expanded": lambda x, n, k: jnp.broadcast_to(x[:1, None], (1, x.shape[0], 5)).reshape(-1, 5),
}
"""Functions of x float32, n int32 in [0, 4) and k uint32, [batch, 5] each, of all primitives."""


@pytest.mark.parametrize("name", PRIMITIVES)
def test_a_primitive_is_what_it_is_in_jax(name):
    """Faults: an operator has another sign, order, axis, end or rounding; the batch is that of the
    trace."""
    function, random = PRIMITIVES[name], np.random.default_rng(0)
    inputs = {"n": Input(("batch", 5), "int32"), "x": Input(("batch", 5), "float32")}
    model = to_onnx(
        lambda given: {"y": function(given["x"], given["n"], given["n"].astype(jnp.uint32))},
        inputs,
        {"batch": 8},
        name,
    )
    onnx.checker.check_model(model, full_check=True)
    session = answer.onnxruntime.InferenceSession(model.SerializeToString())
    for count in (1, 4):
        given = {
            "n": random.integers(0, 4, (count, 5), dtype=np.int32),
            "x": random.normal(size=(count, 5)).astype(np.float32),
        }
        (found,) = session.run(["y"], given)
        x, n = jnp.asarray(given["x"]), jnp.asarray(given["n"])
        expected = np.asarray(function(x, n, n.astype(jnp.uint32)))
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected.astype(found.dtype), rtol=2e-5, atol=2e-5)


def test_no_primitive_is_known_that_nothing_tests():
    """Faults: the tables grow by a primitive whose operator nobody compared."""
    from metaguide.exporting import graph

    seen = set()

    def note(jaxpr):
        for equation in jaxpr.eqns:
            seen.add(equation.primitive.name)
            for field in ("jaxpr", "call_jaxpr"):
                if field in equation.params:
                    note(getattr(equation.params[field], "jaxpr", equation.params[field]))

    x, n = jnp.ones((2, 5)), jnp.ones((2, 5), jnp.int32)
    for function in PRIMITIVES.values():
        note(jax.make_jaxpr(function)(x, n, n.astype(jnp.uint32)).jaxpr)
    known = {*graph.SAME, *graph.ELEMENTWISE, *graph.STRUCTURAL}
    assert known - seen == set()


def test_what_the_graph_cannot_say_is_one_error():
    """Faults: a primitive or a dtype that is not known becomes a wrong graph or a raw error."""
    inputs = {"x": Input(("batch", 3), "float32")}
    for function, words in (
        (lambda x: jnp.sort(x["x"]), "uses sort, which is not exported"),
        (lambda x: x["x"].astype(jnp.bfloat16), "computes in bfloat16"),
        (lambda x: jnp.arange(2 * x["x"].shape[0]), r"the size 2\*batch, which is not one of"),
        (lambda x: jax.lax.population_count(x["x"].astype(jnp.int32)), "uses population_count"),
    ):
        with pytest.raises(ExportError, match=words):
            to_onnx(lambda x, f=function: {"y": f(x)}, inputs, {}, "f")


@pytest.mark.slow
def test_the_command_exports(small, tmp_path, monkeypatch, capsys):
    """Faults: the command needs more than its arguments, hides an error, or a missing library is a
    raw error."""
    small.save(tmp_path / "garden.guide")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["metaguide", "export", *map(str, words)])
        try:
            main()
        except SystemExit as error:
            return error.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    guide, output = tmp_path / "garden.guide", tmp_path / "out"
    code, said, _ = run(guide, "--format=onnx", f"--output={output}", "--task=sentiment")
    assert code == 0 and "sentiment" in said and "largest difference" in said
    code, said, _ = run(guide, f"--output={output}", "--task=classification", "--json")
    assert code == 0 and json.loads(said)["task"] == "classification"
    assert json.loads(said)["folder"] == str(output)
    code, _, wrong = run(guide, f"--output={output}")
    assert code == 1 and wrong.startswith("metaguide: the guide answers") and wrong.count("\n") == 1
    for module in [name for name in sys.modules if name.startswith("metaguide.exporting")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(metaguide, "exporting")
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, wrong = run(guide, f"--output={output}", "--task=sentiment")
    assert code == 1 and wrong.count("\n") == 1 and "pip install 'metaguide[export]'" in wrong
