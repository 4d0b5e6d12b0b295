"""The adapted classifier of a guide as a formula of its pretrained encoder's vector."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from metaguide.exporting.graph import ExportError
from metaguide.exporting.prediction import Prediction
from metaguide.models.heads import LARGEST
from metaguide.tasks.classification import NAME as CLASSIFICATION
from metaguide.types import OUT

_PROTOTYPES = ("prototypes", "named-prototypes")

METHODS = ("ridge", "named-ridge", "logistic", *_PROTOTYPES, "soft-k-means", "map")
"""The adaptations whose state is a classifier on features."""


def head_of(prediction: Prediction) -> dict[str, np.ndarray]:
    """Return the arrays of `metaguide.exporting.head`, float32.

    Raises:
        ExportError: the prediction is no function of a vector alone, or the method adapts more
            than a classifier on features.
    """
    adaptation, reader = prediction.adaptation, prediction.reading.reader
    if prediction.encoder is None:
        raise ExportError(
            "only a guide on a frozen pretrained encoder is exported as vectors; export this one "
            "as onnx"
        )
    others = {
        "tokens": reader.tokenizer is not None,
        "n-grams": bool(reader.buckets),
        "pictures": prediction.reads_pictures,
    }
    if any(others.values()):
        read = " and ".join(name for name, is_read in others.items() if is_read)
        raise ExportError(f"the guide reads {read} beside the vectors; export it as onnx")
    if adaptation.adapts != "features" or adaptation.by not in METHODS:
        by = prediction.serving.method if prediction.adapted.is_adapted else "no examples"
        raise ExportError(
            f"{prediction.task} is adapted by {by}, whose state is no classifier on features "
            f"(those of {', '.join(METHODS)} are); export it as onnx"
        )
    params: Any = prediction.params
    projection, norm = params["pretrained"]["projection"], params["fusion"]
    found = {
        "adapter.weight": projection["kernel"],
        "adapter.bias": projection["bias"],
        "norm.scale": norm["scale"],
        "norm.bias": norm["bias"],
        **_classifier(prediction),
    }
    return {name: np.ascontiguousarray(one, np.float32) for name, one in found.items()}


def formula_of(head: Mapping[str, np.ndarray]) -> list[str]:
    """Return what `metaguide.exporting.head` computes with these arrays, step by step."""
    centred = "x = scaled(scaled(f) - middle)" if "middle" in head else "x = scaled(f)"
    terms = {
        "linear.weight": ["logits += f @ linear.weight + linear.bias"],
        "scaled.weight": [centred, "logits += x @ scaled.weight + scaled.bias"],
        "names.weight": [
            "p = f @ names.projection",
            "logits += (p @ names.weight) / sqrt(sum(p * p) + 1e-12)",
        ],
    }
    return [
        "h = the vector, rounded to float16; m = mean(h), rounded to float16",
        "scaled(a) = a / sqrt(mean(a * a) + 1e-6)",
        "u = scaled(h - m) @ adapter.weight + adapter.bias",
        "f = scaled(u - mean(u)) * norm.scale + norm.bias",
        "logits = 0",
        *(step for name, steps in terms.items() if name in head for step in steps),
        "probabilities = softmax(logits)",
    ]


def _classifier(prediction: Prediction) -> dict[str, Any]:
    _, fitted = prediction.adapted.state
    by = prediction.adaptation.by
    if by in _PROTOTYPES:
        return _nearest("linear", *fitted)
    if by == "soft-k-means":
        middle, centres, lacking = fitted
        return {"middle": middle, **_nearest("scaled", centres, lacking)}
    if by == "map":
        middle, shift = fitted
        bias = np.zeros(shift.shape[1])
        moved = {"middle": middle, "scaled.weight": shift, "scaled.bias": bias}
        return {**_trained(prediction), **moved}
    return {"scaled.weight": fitted[:-1], "scaled.bias": fitted[-1]}


def _nearest(part: str, centres: Any, lacking: Any) -> dict[str, Any]:
    """Return the linear form of −‖x − c‖² / √width: ‖x‖² is the same for all classes."""
    centres = np.asarray(centres, np.float64)
    scale = centres.shape[1] ** 0.5
    bias = np.where(lacking, OUT, -np.square(centres).sum(1) / scale)
    weight = np.where(lacking, 0, 2 * centres.T / scale)
    return {f"{part}.weight": weight, f"{part}.bias": bias}


def _trained(prediction: Prediction) -> dict[str, Any]:
    """Return the trained head, which MAP adaptation adds to."""
    head, way = prediction.params[prediction.task], len(prediction.adapted.classes)
    if prediction.task != CLASSIFICATION:
        return {"linear.weight": head["classes"]["kernel"], "linear.bias": head["classes"]["bias"]}
    encoded = prediction.fixed(prediction.params, prediction.adapted.context)
    names = np.asarray(encoded["names"]) @ np.asarray(head["name"]["kernel"])
    names = names / np.sqrt(np.square(names).sum(1, keepdims=True) + 1e-12)
    scale = np.exp(min(float(head["log_scale"]), LARGEST))
    return {
        "linear.weight": np.asarray(head["slots"])[:way].T,
        "linear.bias": np.asarray(head["bias"])[:way],
        "names.projection": head["vector"]["kernel"],
        "names.weight": scale * names.T,
    }
