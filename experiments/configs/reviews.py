"""Sentiment of Chinese reviews of a category that no source has, each of ten held out in turn.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.reviews \\
    --config.encoder.weights=multilingual-e5-small --config.encoder.prefix="query: "
"""

from ml_collections import ConfigDict

from experiments.ranges import (
    TUNED,
    at_least_0,
    integer,
    one_of,
    positive,
    several,
    text,
)
from experiments.sources import REVIEWS

RANGES = {
    "table": text(),
    "reviews": one_of(*REVIEWS),
    "held_out": several(text(), least=0),
    "seed": integer(0),
    "per_category": integer(0),
    "shots": several(integer(0)),
    "episodes": integer(2),
    "caution": at_least_0(),
    "encoder.weights": text(),
    "encoder.prefix": text(),
    "encoder.length": integer(3),
    "encoder.cache": text(),
    "encoder.penalties": several(positive()),
    "ngrams.unit": one_of("character", "word"),
    "ngrams.longest": integer(2, 8),
    "ngrams.least_texts": integer(1),
    "ngrams.penalties": several(positive()),
    "tfidf.penalties": several(positive()),
    "stack.shares": several(positive()),
    **{f"tuned.{field}": valid for field, valid in TUNED.items()},
    "tuned.length": integer(3),
    "tuned.seeds": several(integer(0)),
    "tuned.held_back": integer(1),
    "rule.episodes": integer(1),
    "rule.queries": integer(1),
    "rule.penalty": positive(),
    "rule.steps": integer(1),
}
"""Valid values of the fields."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "reviews_zh"  # name of the table in results.json
    config.reviews = "online_shopping"  # the reviews: online_shopping, fdu_mtl or arsc
    config.held_out = ()  # categories that are held out together; if empty, each in turn
    config.seed = 0  # seed of the reviews that are drawn, and of the episodes
    # Reviews of a category that are tested, and that the encoder reads; 0 for all. N-grams and
    # TF-IDF learn from all reviews of the sources all the same: they need no encoder.
    config.per_category = 2000
    config.shots = (0, 1, 5, 10, 20)  # labelled reviews of each sentiment in the held-out category
    config.episodes = 200  # supports that are drawn in each category
    config.caution = 2.0  # standard errors by which adapting has to pay before the guard lets it
    config.preset = "default"  # named overrides: quick or tiny
    config.presets = {
        # A first look: few reviews, and one value of each penalty.
        "quick": {
            "per_category": 300,
            "shots": (0, 5),
            "episodes": 50,
            "ngrams": {"penalties": (0.1,), "longest": 2},
            "encoder": {"penalties": (2000.0,)},
            "tfidf": {"penalties": (0.3,)},
        },
        # For tests: everything runs, but nothing is learned.
        "tiny": {
            "per_category": 30,
            "shots": (0, 2),
            "episodes": 3,
            "ngrams": {"penalties": (1.0,), "least_texts": 1},
            "encoder": {"penalties": (10.0,)},
            "tfidf": {"penalties": (1.0,)},
            "stack": {"shares": (0.5, 1.0)},
            "tuned": {"layers": 1, "batch": 4, "length": 16, "log_every": 1},
            "rule": {"episodes": 2, "queries": 5, "steps": 2},
        },
    }
    config.encoder = {
        "weights": "",  # Hugging Face folder of a pretrained encoder; if empty, n-grams alone
        "prefix": "",  # put before every text, "query: " for the e5 models
        "length": 128,  # tokens of a text, what follows is not read
        "cache": "",  # folder that keeps vectors; if empty, one in the work folder
        "penalties": (600.0, 2000.0, 6000.0, 20000.0),  # λ of the head that are tried
    }
    config.ngrams = {
        "unit": "character",  # what n-grams are made of: character or word
        "longest": 3,  # characters or words of an n-gram at most
        "least_texts": 3,  # texts of source categories that an n-gram occurs in at least
        "penalties": (0.03, 0.1, 0.3),  # λ of the head that are tried
    }
    config.tfidf = {"penalties": (0.03, 0.1, 0.3, 1.0)}  # λ of the baseline's head that are tried
    # Weights of the logits of n-grams, added to those of the encoder, that are tried.
    config.stack = {"shares": (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)}
    # The encoder as the reviews of sources teach it, where categories are held out together.
    config.tuned = {
        "epochs": 0.0,  # how often it reads them; 0 leaves it out of the table
        "seeds": (0,),  # seeds of the training
        # Number of sources that do not teach it, other ones for each seed: choices are made on them
        "held_back": 2,
        "length": 128,  # tokens of a text that it learns from
        "layers": 12,  # last layers of the encoder that train; its embeddings do not
        "batch": 16,  # reviews of a step
        "learning_rate": 5e-5,  # rate of the layers, which rises for a tenth and falls to 0
        "head_learning_rate": 1e-3,  # rate of the head
        "weight_decay": 0.01,  # of AdamW
        "dropout": 0.1,  # dropout rate of the encoder
        "log_every": 20,  # steps between two lines of metrics
        "checkpoint_every": 200,  # steps between two checkpoints
    }
    config.rule = {
        "episodes": 8,  # episodes of each source category that λ and scale are learned on
        "queries": 200,  # queries of such an episode at most
        "penalty": 100.0,  # λ where learning starts, and where there is no source
        "steps": 40,  # steps of resilient propagation
    }
    return config
