"""Seconds of an adapted guide: to adapt, to judge 1, 64 and 1,000 reviews, to rank 10,000 products.

python -m experiments.benchmarks.answers --output=answers.json
python -m experiments.benchmarks.answers --encoder=FOLDER --prefix="query: " --rounds=1

Beside it stands scikit-learn: a logistic regression on TF-IDF, and for the ranking the cosine to
the mean of what the user took. With an encoder also a logistic regression on the same vectors,
which is SetFit's head, and the cosine of the vectors.

Nothing is trained, since what an answer costs does not depend on what it says. Without an encoder
the guide is of the size of the bazaar's, on tokens and n-grams; ten steps of gradient descent adapt
its head of sentiment, and for each user its head of recommendation. With one it is that of
`metaguide.from_encoder`. All read reviews and products of the generated toys.

The first call compiles, and each call reads the next reviews. To adapt is to learn from five
positive and five negative ones, whose vectors are known if there is an encoder, like those of the
products.
"""

import functools
import itertools
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.measure import (
    ONLY,
    OUTPUT,
    ROUNDS,
    System,
    measure,
    start,
)
from metaguide.data.catalogue import Domain, Review
from metaguide.files import write_json
from metaguide.guide import Guide
from metaguide.run_config import RunConfig

ENCODER = flags.DEFINE_string("encoder", None, "folder of a pretrained encoder to read texts by")
PREFIX = flags.DEFINE_string("prefix", "", "what the encoder has before every text")

SHOTS, TOP, TAKEN = 5, 10, 10
"""Reviews of each sentiment to adapt to, products of a ranking, and products that a user took."""

BATCHES = {"1-review": 1, "64-reviews": 64, "1000-reviews": 1000}
"""Numbers of reviews judged at once, keyed by workload."""

ADAPT, RANK = "adapt", "rank"


LENGTH = 128
"""The most tokens that an encoder reads of a text."""

SIZES = RunConfig(
    width=48,
    layers=1,
    heads=4,
    dropout=0.1,
    channels=(16, 32, 64),
    image=False,
    way=10,
    text_tokens=28,
    pair_tokens=72,
    name_tokens=8,
    max_answer_tokens=8,
    buckets=32768,
)
"""The guide without an encoder, of the size of the bazaar's."""


class Setting(NamedTuple):
    """What the process of a system reads.

    Attributes:
        domain: folder of the domain.
        encoder: folder of the encoder; None if there is none.
        prefix: what it has before every text.
        cache: folder of the vectors that are known.
    """

    domain: str
    encoder: str | None
    prefix: str
    cache: str


def write_shop(folder: Path) -> None:
    """Write a domain of toys with 10,000 products and 2,000 reviews, without pictures."""
    from metaguide.data.bazaar import generate
    from metaguide.data.bazaar_settings import BazaarSettings
    from metaguide.data.catalogue import Domain, write_domain
    from metaguide.data.repeats import without_repeats

    settings = BazaarSettings(domains=("toys",), categories=8, products=1250, reviews=2000)
    toys = generate(settings)["toys"]
    products = tuple(replace(one, image=None) for one in toys.products)
    shop = Domain("toys", products, reviews=toys.reviews, interactions=toys.interactions)
    with warnings.catch_warnings(action="ignore"):  # of the few that are left out
        shop = without_repeats(shop, pictures=False)
    write_domain(shop, folder)


def open_guide(setting: Setting, domain: Domain, is_cached: bool = True) -> Guide:
    """Return a guide without training; unless `is_cached` it computes every vector anew."""
    import metaguide

    if setting.encoder:
        cache = setting.cache if is_cached else None
        return metaguide.from_encoder(
            setting.encoder, prefix=setting.prefix, length=LENGTH, cache=cache
        )
    import jax

    from metaguide.data.texts import product_text
    from metaguide.data.tokenizer import Tokenizer
    from metaguide.guide import Guide, model_of, reading_of
    from metaguide.models.guide import init_params
    from metaguide.tasks import Serving

    texts = [product_text(one) for one in domain.products[:1000]]
    tokenizer = Tokenizer.train([*texts, *(one.text for one in domain.reviews)], 2000)
    model = model_of(SIZES, tokenizer)
    meta = {"params": init_params(model, jax.random.key(0))}
    tasks = "sentiment", "recommendation"
    serving = {task: Serving(meta, "head-only", 0.01, 10) for task in tasks}
    return Guide(model, reading_of(SIZES, tokenizer), serving, SIZES)


def parts_of(setting: Setting) -> tuple[Domain, list[Review], list[Review], list[int]]:
    """Return the domain, the reviews to adapt to, those to judge, and rows of a user's products."""
    from metaguide.data.catalogue import read_domain

    domain = read_domain(Path(setting.domain))
    support, labels = [], (0, 1)
    for label in labels:
        support += [one for one in domain.reviews if one.label == label][:SHOTS]
    others = [one for one in domain.reviews if one not in support]
    taken = np.random.default_rng(0).permutation(len(domain.products))[:TAKEN]
    return domain, support, others, taken.tolist()


def build_metaguide(setting: Setting, name: str) -> Callable[[], Any]:
    """Return a function that runs a workload by the guide."""
    from metaguide.data.catalogue import Domain
    from metaguide.data.histories import History

    domain, support, others, taken = parts_of(setting)
    guide = open_guide(setting, domain, is_cached=name not in BATCHES)
    if name == RANK:
        adapted = guide.adapt(Domain("toys", domain.products, interactions=domain.interactions))
        user = History("user", tuple(domain.products[row].id for row in taken))
        adapted.predict([user])  # which encodes the products
        return lambda: adapted.predict([user], top=TOP)
    shop = Domain("toys", reviews=domain.reviews)
    if name == ADAPT:
        return lambda: guide.adapt(shop, support=support)
    adapted = guide.adapt(shop, support=support)
    batches = cycled(others, BATCHES[name])
    return lambda: adapted.predict(next(batches))


def build_sklearn(setting: Setting, name: str, on_vectors: bool) -> Callable[[], Any]:
    """Return a function that runs a workload by scikit-learn, on TF-IDF or on vectors."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, normalize

    from metaguide.data.ngrams import WORD
    from metaguide.data.texts import product_text

    domain, support, others, taken = parts_of(setting)
    if on_vectors:
        vectors = open_guide(setting, domain, name not in BATCHES).reading.reader.vectors
        features: Any = FunctionTransformer(vectors)
    else:
        features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORD)
    if name == RANK:
        products: Any = normalize(
            features.fit_transform([product_text(p) for p in domain.products])
        )

        def rank() -> np.ndarray:
            user = np.asarray(products[taken].mean(0)).reshape(-1)
            scores = products @ user
            scores[taken] = -np.inf
            best = np.argpartition(scores, -TOP)[-TOP:]
            return best[np.argsort(-scores[best])]

        return rank
    pipeline = make_pipeline(features, LogisticRegression())
    texts, labels = [one.text for one in support], [one.label for one in support]
    if name == ADAPT:
        return lambda: pipeline.fit(texts, labels)
    pipeline.fit(texts, labels)
    batches = cycled(others, BATCHES[name])
    return lambda: pipeline.predict_proba([one.text for one in next(batches)])


def cycled(reviews: Sequence[Review], count: int) -> Iterator[list[Review]]:
    """Yield the next reviews, without end."""
    endless = itertools.cycle(reviews)
    while True:
        yield list(itertools.islice(endless, count))


def systems_of(setting: Setting, name: str) -> list[System]:
    """Return the systems of a workload, ours first."""
    found = [System("metaguide", functools.partial(build_metaguide, setting, name))]
    of_sklearn = functools.partial(build_sklearn, setting, name)
    found.append(System("scikit-learn, TF-IDF", functools.partial(of_sklearn, on_vectors=False)))
    if setting.encoder:
        on_vectors = functools.partial(of_sklearn, on_vectors=True)
        found.append(System("scikit-learn, the same vectors", on_vectors))
    return found


def know_vectors(setting: Setting, with_products: bool) -> None:
    """Compute the vectors that are known: of the reviews to adapt to, and perhaps of products."""
    from metaguide.data.texts import product_text

    domain, support, _, _ = parts_of(setting)
    texts = [one.text for one in support]
    if with_products:
        texts += [product_text(one) for one in domain.products]
    vectors = open_guide(setting, domain).reading.reader.vectors
    assert vectors is not None
    vectors(texts)


def main() -> None:
    """Measure, print the table and write the rows."""
    names = [one for one in (ADAPT, *BATCHES, RANK) if not ONLY.value or one in ONLY.value]
    folder = Path(tempfile.mkdtemp())
    table = Table("workload", "system", title="milliseconds")
    for column in ("first call", "best of the others"):
        table.add_column(column, justify="right")
    rows = []
    try:
        write_shop(folder / "toys")
        setting = Setting(
            str(folder / "toys"), ENCODER.value, PREFIX.value, str(folder / "vectors")
        )
        if setting.encoder:
            know_vectors(setting, with_products=RANK in names)
        for name in names:
            for system, timing in measure(systems_of(setting, name), ROUNDS.value).items():
                found = {"first_ms": 1000 * timing.first, "best_ms": 1000 * timing.best}
                rows.append({"workload": name, "system": system, **found})
                table.add_row(name, system, *(f"{value:,.1f}" for value in found.values()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    Console().print(table)
    if OUTPUT.value:
        write_json(Path(OUTPUT.value), {"encoder": bool(ENCODER.value), "rows": rows})


if __name__ == "__main__":
    start(main)
