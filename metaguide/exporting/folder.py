"""An exported guide as a folder: writing it, comparing it with the guide, and describing it."""

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import safetensors.numpy

from metaguide.data.catalogue import Product, Review
from metaguide.data.ngrams import MOST, WORD
from metaguide.data.texts import product_text
from metaguide.exporting import answer, head
from metaguide.exporting.graph import ExportError, to_onnx
from metaguide.exporting.prediction import Prediction, prediction_of
from metaguide.exporting.vectors import formula_of, head_of
from metaguide.files import FileFault, atomic_folder, would_be_lost, write_json
from metaguide.guide import AdaptedGuide
from metaguide.pretrained import CutTexts
from metaguide.tasks import TASKS, Category, Sentiment
from metaguide.types import HASHES

MODEL, TOKENIZER, ABOUT = "model.onnx", "tokenizer.json", "export.json"
HEAD, ABOUT_HEAD, README = "head.safetensors", "head.json", "README.md"
"""The files of an export, besides the Python file that reads it."""

VERSION = 1
"""Version of the descriptions; it increases when a field is added or changes its meaning."""

LARGEST = 1e-4
"""The largest difference between a probability of an export and the guide's."""

CHECKED = 64
"""The most examples of the guide's own that are compared."""

OTHERS = (
    "",
    "Broke after a day.",
    "客服态度很好，物流也快，下次还来。",
    "Не работает! [SEP] ½ 🙂 ＦＵＬＬ",
    "a long text that is cut where the guide stops reading " * 40,
)
"""Texts that are compared besides the guide's own."""

MEANINGS: Mapping[str, str] = {
    "tokens": "ids of tokenizer.json, which adds the special tokens, cuts and pads; in a text the "
    "names of special tokens are ordinary characters (encode_special_tokens)",
    "mask": "1 for a token, 0 for padding",
    "grams": "numbers of n-grams, 0 for padding, at least one column",
    "image": "RGB pictures of 32 by 32 pixels; any where has_image is false",
    "has_image": "whether the product has a picture",
}
"""What the inputs are."""

PRODUCT_TEXT = (
    "the title, the description, and 'NAME VALUE' of each attribute that these do not mention, "
    "joined by single blanks"
)
"""The text of a product, as `product_text` makes it."""


Answers = Callable[[Sequence[str], Sequence[np.ndarray | None]], np.ndarray]
"""(texts, pictures) -> probabilities [texts, classes]."""


class Exported(NamedTuple):
    """What was exported.

    Attributes:
        folder: the folder.
        task: name of the task.
        examples: the number of examples on which it was compared with the guide.
        difference: the largest difference of a probability that was seen.
        bytes: size of the folder.
    """

    folder: Path
    task: str
    examples: int
    difference: float
    bytes: int


def export(
    guide: AdaptedGuide, folder: Path | str, *, format: str = "onnx", task: str | None = None
) -> Exported:
    """Export a task of an adapted guide into a folder, whole or not at all.

    With "onnx" the folder holds `model.onnx`, from tokens to probabilities with a dynamic batch
    axis; with "vectors" it holds `head.safetensors`, from the vector that the guide's pretrained
    encoder makes of a text to probabilities. The rest says how to use them: a README, a description
    as JSON, and a Python file that needs no metaguide. Before the folder gets its name, its answers
    are compared with the guide's on the examples that it adapted to and on some others.

    Args:
        guide: the adapted guide.
        folder: the folder to write; an older export there is replaced.
        format: one of `FORMATS`.
        task: "classification" or "sentiment"; may be left out if the guide answers one of the two.

    Returns:
        What was exported.

    Raises:
        ExportError: the format, the task or the guide cannot be exported, the answers differ by
            more than 1e-4, there is something else in the folder, or it cannot be written.
        CheckpointError: the pretrained encoder is no longer where the guide read it.
    """
    if format not in FORMATS:
        raise ExportError(f"there is no format {format!r}; there are {', '.join(FORMATS)}")
    prediction, folder = prediction_of(guide, task), Path(folder)
    try:
        other = _lost(folder)
    except FileFault as error:
        raise ExportError(f"{folder}: {error}; move it away, or give another folder") from error
    if other is not None:
        raise ExportError(
            f"{folder / other}: this is no part of an export and would be lost if one were written "
            "here; move it away, or give another folder"
        )
    try:
        with atomic_folder(folder) as new:
            written = FORMATS[format](prediction, new)
            about = {**_origin(prediction), **written.about}
            write_json(new / written.file, about)
            examples, difference = _compared(prediction, written.opened())
            compared = {"examples": examples, "largest_difference": difference}
            write_json(new / written.file, {**about, "compared": compared})
            said = README_TEXT.format(
                task=prediction.task,
                domain=guide.domain.name,
                file=written.file,
                examples=examples,
                difference=difference,
            )
            (new / README).write_text(said + written.example, encoding="utf-8")
            size = sum(path.stat().st_size for path in new.iterdir())
    except OSError as error:
        raise ExportError(
            f"{folder}: cannot be written ({error}); make room, or give another folder"
        ) from error
    return Exported(folder, prediction.task, examples, difference, size)


class Written(NamedTuple):
    """What a format writes.

    Attributes:
        file: name of the file of its description.
        about: the description.
        example: Markdown that says how to use the folder.
        opened: reads the folder and returns (texts, pictures) -> probabilities.
    """

    file: str
    about: dict[str, Any]
    example: str
    opened: Callable[[], Answers]


def _lost(folder: Path) -> str | None:
    """Return the name of something else in the folder; None if there is nothing."""
    onnx_parts = (MODEL, TOKENIZER, ABOUT, README, "answer.py", "__pycache__")
    head_parts = (HEAD, ABOUT_HEAD, README, "head.py", "__pycache__")
    found = would_be_lost(folder, onnx_parts, ABOUT)
    return found and would_be_lost(folder, head_parts, ABOUT_HEAD) and found


def _write_onnx(prediction: Prediction, folder: Path) -> Written:
    inputs, limits = prediction.inputs()
    model = to_onnx(prediction.function(), inputs, limits, prediction.task)
    onnx.save(model, folder / MODEL)
    outputs = {"probabilities": ["batch", len(prediction.adapted.classes)]}
    if any(one.name == "stars" for one in model.graph.output):
        outputs["stars"] = ["batch"]
    about: dict[str, Any] = {
        "inputs": {
            name: {"dtype": one.dtype, "shape": one.shape, "meaning": MEANINGS[name]}
            for name, one in inputs.items()
        },
        "outputs": {name: {"dtype": "float32", "shape": shape} for name, shape in outputs.items()},
        "prefix": prediction.prefix,
    }
    tokenizer = prediction.tokenizer()
    if tokenizer is not None and tokenizer.padding is not None:
        tokenizer.save(str(folder / TOKENIZER))
        about["padding"] = tokenizer.padding["pad_id"]
        about["most_tokens"] = limits["length"]
    if "grams" in inputs:
        about["ngrams"] = {"word": WORD, "hashes": HASHES, "most": MOST}
    shutil.copyfile(answer.__file__, folder / "answer.py")

    def opened() -> Answers:
        guide = answer.load(folder)
        return lambda texts, pictures: answer.answer(guide, texts, pictures)["probabilities"]

    return Written(ABOUT, about, ONNX_TEXT, opened)


def _write_vectors(prediction: Prediction, folder: Path) -> Written:
    arrays, encoder = head_of(prediction), prediction.encoder
    assert encoder is not None
    (folder / HEAD).write_bytes(safetensors.numpy.save(arrays))
    shutil.copyfile(head.__file__, folder / "head.py")
    about = {
        "vector": {
            "encoder_fingerprint": encoder.fingerprint,
            "width": encoder.config.width,
            "prefix": encoder.prefix,
            "most_tokens": encoder.length,
            "pooling": POOLINGS[encoder.pooling],
            "normalised": False,
        },
        "arrays": {name: list(one.shape) for name, one in arrays.items()},
        "formula": formula_of(arrays),
    }

    def opened() -> Answers:
        read = safetensors.numpy.load_file(folder / HEAD)
        vectors = prediction.guide.guide.reading.reader.vectors
        assert vectors is not None
        return lambda texts, pictures: head.probabilities(read, vectors(texts))

    return Written(ABOUT_HEAD, about, VECTORS_TEXT.format(width=encoder.config.width), opened)


FORMATS: Mapping[str, Callable[[Prediction, Path], Written]] = {
    "onnx": _write_onnx,
    "vectors": _write_vectors,
}
"""The formats, keyed by name."""


def _origin(prediction: Prediction) -> dict[str, Any]:
    """Return what both descriptions begin with."""
    try:
        package = version("metaguide")
    except PackageNotFoundError:  # in a clone
        package = ""
    is_review = TASKS[prediction.task].asks is Review
    return {
        "version": VERSION,
        "metaguide": package,
        "domain": prediction.guide.domain.name,
        "task": prediction.task,
        "method": prediction.serving.method,
        "examples_adapted_to": len(prediction.adapted.support),
        "classes": list(prediction.adapted.classes),
        "text": "the text of the review" if is_review else PRODUCT_TEXT,
    }


def _compared(prediction: Prediction, answers: Answers) -> tuple[int, float]:
    """Return the number of examples that were compared, and the largest difference.

    Raises:
        ExportError: it is too large.
    """
    adapted, asks = prediction.adapted, TASKS[prediction.task].asks
    own = [*adapted.support, *adapted.unlabelled][:CHECKED]
    examples = [*own, *(asks("0", text) for text in OTHERS)]
    texts = [product_text(one) if isinstance(one, Product) else one.text for one in examples]
    pictures = [one.image if isinstance(one, Product) else None for one in examples]
    with warnings.catch_warnings():
        # Of these texts nobody has to know that one is long.
        warnings.simplefilter("ignore", CutTexts)
        known = np.array([_chances(one) for one in prediction.guide.predict(examples)])
        differences = [
            np.abs(answers(texts[start:], pictures[start:]) - known[start:]).max()
            for start in (0, len(texts) - 1, len(texts) - 3)
        ]
    difference = float(np.max(differences))
    # A comparison with NaN is never true.
    if not difference <= LARGEST:
        raise ExportError(
            f"{prediction.task}: a probability differs from the guide's by {difference:.1e}, more "
            f"than {LARGEST:.0e}, so that nothing is exported; report it with the guide's method, "
            f"{prediction.serving.method}"
        )
    return len(examples), difference


def _chances(answered: Category | Sentiment) -> list[float]:
    if isinstance(answered, Sentiment):
        return [1 - answered.positive, answered.positive]
    return list(answered.probabilities.values())


README_TEXT = """\
# {domain}: {task}

Exported by metaguide. On {examples} examples no probability differs from the guide's by more than
{difference:.1e}. `{file}` says what goes in and what comes out.

"""

ONNX_TEXT = """\
    pip install numpy onnxruntime tokenizers
    python answer.py "Quiet and quick."

```python
from answer import answer, load

guide = load(".")
print(guide.about["classes"], answer(guide, ["Quiet and quick."])["probabilities"])
```
"""

VECTORS_TEXT = """\
    pip install numpy safetensors

```python
import numpy as np
from head import probabilities
from safetensors.numpy import load_file

vectors = np.random.normal(size=(2, {width}))  # in their place, those of your encoder
print(probabilities(load_file("head.safetensors"), vectors))
```
"""

POOLINGS: Mapping[str, str] = {
    "mean": "the mean of the last states of all tokens, with those that the tokenizer puts around",
    "cls": "the last state of the first token",
}
"""How states become a vector."""
