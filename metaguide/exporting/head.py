"""The probabilities that the exported head beside this file gives to vectors of texts.

    vectors = np.stack([...])  # float32 [texts, width], made as head.json says
    print(probabilities(load_file("head.safetensors"), vectors))

`load_file` is that of safetensors.numpy. `head.json` says the same in formulas.
"""

from collections.abc import Mapping

import numpy as np


def probabilities(head: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Return the probability of each class.

    Args:
        head: the arrays of `head.safetensors`.
        vectors: float [texts, width], the encoder's vectors.

    Returns:
        float32 [texts, classes].
    """
    logits = scores(head, features(head, vectors))
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def features(head: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Return f, float32 [texts, features], which the head is a function of."""
    # The guide keeps vectors in half precision, and their means too.
    half = np.asarray(vectors).astype(np.float16)
    mean = half.astype(np.float32).mean(1, keepdims=True).astype(np.float16)
    centred = half.astype(np.float32) - mean.astype(np.float32)
    adapted = _scaled(centred) @ head["adapter.weight"] + head["adapter.bias"]
    adapted = adapted - adapted.mean(1, keepdims=True)
    return _scaled(adapted) * head["norm.scale"] + head["norm.bias"]


def scores(head: Mapping[str, np.ndarray], f: np.ndarray) -> np.ndarray:
    """Return the logits, float32 [texts, classes]."""
    logits: np.ndarray = np.zeros((len(f), 1), np.float32)
    if "linear.weight" in head:
        logits = logits + f @ head["linear.weight"] + head["linear.bias"]
    if "scaled.weight" in head:
        x = _scaled(f)
        if "middle" in head:
            x = _scaled(x - head["middle"])
        logits = logits + x @ head["scaled.weight"] + head["scaled.bias"]
    if "names.weight" in head:
        projected = f @ head["names.projection"]
        norm = np.sqrt(np.square(projected).sum(1, keepdims=True) + np.float32(1e-12))
        logits = logits + projected / norm @ head["names.weight"]
    return logits


def _scaled(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt(np.square(rows).mean(1, keepdims=True) + np.float32(1e-6))
