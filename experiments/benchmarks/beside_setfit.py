"""A guide without training beside SetFit, from the same examples and the same pretrained encoder.

python -m pip install setfit
python -m experiments.benchmarks.beside_setfit --domain=my_shop/garden --encoder=FOLDER

SetFit (Tunstall et al. 2022, https://arxiv.org/abs/2209.11055) trains the whole encoder to tell
whether two examples are of one class, and then a logistic regression on its vectors. Here its own
library does so: 20 pairs of one class and 20 of two for each example, one epoch, batches of 16, a
learning rate of 2e-5, vectors averaged over tokens and normalised. The guide is that of
`metaguide.from_encoder`, which trains nothing of the encoder. Both see the draws of
`metaguide.evaluating.evaluate`.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

import metaguide
from experiments.benchmarks.measure import OUTPUT, start
from metaguide.data.catalogue import read_domain
from metaguide.evaluating import Peer, evaluate
from metaguide.evaluation_report import as_text
from metaguide.files import write_json
from metaguide.training.progress import say

DOMAIN = flags.DEFINE_string("domain", None, "folder of the domain", required=True)
ENCODER = flags.DEFINE_string("encoder", None, "folder of the encoder", required=True)
PREFIX = flags.DEFINE_string("prefix", "", "what the encoder has before every text")
LENGTH = flags.DEFINE_integer("length", 128, "most tokens of a text", lower_bound=2)
SHOTS = flags.DEFINE_multi_integer("shots", [5], "examples of each class", lower_bound=1)
DRAWS = flags.DEFINE_integer("draws", 3, "draws for each number of shots", lower_bound=1)
QUERIES = flags.DEFINE_integer("queries", 500, "most examples that are asked", lower_bound=1)
CACHE = flags.DEFINE_string("cache", None, "folder that keeps the guide's vectors")

PAIRS = 20
"""Pairs of one class, and as many of two, for each example; the paper's R."""


def setfit_on(folder: str, prefix: str, length: int, seconds: list[float]) -> Peer:
    """Return SetFit on a pretrained encoder.

    Args:
        folder: folder of the encoder.
        prefix: what it has before every text.
        length: most tokens of a text.
        seconds: gets the time of each training.
    """
    import datasets  # pyright: ignore[reportMissingImports]
    import setfit  # pyright: ignore[reportMissingImports]
    from sentence_transformers import (  # pyright: ignore[reportMissingImports]
        SentenceTransformer,
        models,
    )
    from sklearn.linear_model import LogisticRegression

    def peer(texts: Sequence[str], classes: Sequence[str], asked: Sequence[str]) -> Sequence[str]:
        begun = time.perf_counter()
        body = models.Transformer(folder, max_seq_length=length)
        pooling = models.Pooling(body.get_embedding_dimension(), "mean")
        encoder = SentenceTransformer(modules=[body, pooling, models.Normalize()], device="cpu")
        model = setfit.SetFitModel(encoder, LogisticRegression(), labels=sorted(set(classes)))
        numbers = [model.labels.index(name) for name in classes]
        examples = {"text": [prefix + text for text in texts], "label": numbers}
        with tempfile.TemporaryDirectory() as folder_of_run:
            settings = setfit.TrainingArguments(
                folder_of_run,
                num_iterations=PAIRS,
                report_to="none",
                save_strategy="no",
                show_progress_bar=False,
            )
            setfit.Trainer(model, settings, datasets.Dataset.from_dict(examples)).train()
        seconds.append(time.perf_counter() - begun)
        return list(model.predict([prefix + text for text in asked]))

    return peer


def main() -> None:
    """Evaluate both, print the tables and write them."""
    seconds: list[float] = []
    peer = setfit_on(ENCODER.value, PREFIX.value, LENGTH.value, seconds)
    guide = metaguide.from_encoder(
        ENCODER.value, prefix=PREFIX.value, length=LENGTH.value, cache=CACHE.value
    )
    found = evaluate(
        guide,
        read_domain(Path(DOMAIN.value)),
        SHOTS.value,
        draws=DRAWS.value,
        queries=QUERIES.value,
        peers={"SetFit": peer},
        tell=lambda task, shots: say(f"{task}, {shots} of each class"),
    )
    for one in found:
        print(*as_text(one), sep="\n")
    print(f"SetFit's trainings took {', '.join(f'{taken:.0f}' for taken in seconds)} s")
    if OUTPUT.value:
        cells = [
            {"task": one.task, "method": cell.method, "shots": cell.shots, **cell.score._asdict()}
            for one in found
            for cell in one.cells
        ]
        write_json(Path(OUTPUT.value), {"cells": cells, "seconds": seconds})


if __name__ == "__main__":
    start(main)
