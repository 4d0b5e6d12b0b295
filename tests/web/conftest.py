"""One small guide that answers all four tasks, and has pictures, for the tests of the server."""

import dataclasses

import numpy as np
import pytest

from metaguide.data.catalogue import Domain
from metaguide.data.tokenizer import Tokenizer
from metaguide.web import Limits
from tests.test_guide import DOMAIN, PRODUCTS, RUN, WORDS
from tests.test_saved import guide_of

LIMITS = Limits(batch=3, body=20_000, examples=8, characters=300, history=5, top=6, taught=30)


@pytest.fixture(scope="session")
def adapted():
    texts = [p.title for p in PRODUCTS] + [r.text for r in DOMAIN.reviews] + [*WORDS]
    texts += [f"{q.question} {q.text}" for q in DOMAIN.questions]
    guide = guide_of(
        Tokenizer.train(texts * 2, 340),
        dataclasses.replace(RUN, image=True, buckets=16),
        classification=("prototypical", 0.0, 0),
        sentiment=("ridge", 0.1, 0),
        questions=("zero-shot", 0.0, 0),
        recommendation=("zero-shot", 0.0, 0),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    pictured = [
        dataclasses.replace(one, image=image)
        for one, image in zip(PRODUCTS[:4], pixels, strict=True)
    ]
    # What a shop may call a product, and what its texts may hold.
    strange = dataclasses.replace(
        PRODUCTS[4], id="a/b ?#店", description="<img src=x onerror=alert(1)>"
    )
    products = (*pictured, strange, *PRODUCTS[5:])
    parts = {"reviews": DOMAIN.reviews, "questions": DOMAIN.questions}
    return guide.adapt(Domain("garden_shop", products, **parts), shots=1)
