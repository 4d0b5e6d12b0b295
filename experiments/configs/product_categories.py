"""Which of ten categories a title is in, in shops that no source is, of electronics and appliances.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.product_categories \\
    --config.encoder.weights=multilingual-e5-small --config.encoder.prefix="query: "
"""

from ml_collections import ConfigDict

from experiments.ranges import at_least_0, integer, positive, several, text

RANGES = {
    "table": text(),
    "seed": integer(0),
    "least_titles": integer(2),
    "least_categories": integer(1),
    "groups": integer(2),
    "per_shop": integer(0),
    "shots": several(integer(0)),
    "episodes": integer(2),
    "caution": at_least_0(),
    "size": integer(1),
    "encoder.weights": text(),
    "encoder.prefix": text(),
    "encoder.length": integer(3),
    "encoder.cache": text(),
    "encoder.penalties": several(positive()),
    "ngrams.longest": integer(2, 8),
    "ngrams.least_texts": integer(1),
    "ngrams.penalties": several(positive()),
    "tfidf.penalties": several(positive()),
    "stack.shares": several(positive()),
    "rule.shops": integer(1),
    "rule.episodes": integer(1),
    "rule.queries": integer(1),
    "rule.penalty": positive(),
    "rule.steps": integer(1),
}
"""Valid values of the fields."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "product_categories"  # name of the table in results.json
    config.seed = 0  # seed of the groups of shops, and of the episodes
    config.least_titles = 100  # titles of a shop that is held out at least; all others always teach
    config.least_categories = 3  # categories of such a shop at least
    config.groups = 4  # groups of shops that are held out together, each in turn
    # Titles of a shop that are tested, and that the encoder reads; 0 for all. N-grams and TF-IDF
    # learn from all titles of the sources all the same.
    config.per_shop = 0
    config.shots = (0, 1, 5, 10, 20)  # titles of each category that the shop has
    config.episodes = 5  # supports that are drawn in each shop
    config.caution = 2.0  # standard errors by which adapting has to pay before the guard lets it
    config.size = 40  # supports are filled up to a multiple of this number of examples
    config.preset = "default"  # named overrides: quick or tiny
    config.presets = {
        # A first look: fewer titles and shots, and one value of each penalty.
        "quick": {
            "per_shop": 100,
            "shots": (0, 5),
            "ngrams": {"penalties": (1.0,), "longest": 4},
            "encoder": {"penalties": (600.0,)},
            "tfidf": {"penalties": (1.0,)},
        },
        # For tests: everything runs, but nothing is learned.
        "tiny": {
            "least_titles": 20,
            "per_shop": 20,
            "groups": 2,
            "shots": (0, 2),
            "episodes": 2,
            "ngrams": {"penalties": (1.0,), "longest": 2, "least_texts": 1},
            "encoder": {"penalties": (10.0,)},
            "tfidf": {"penalties": (1.0,)},
            "stack": {"shares": (0.5, 1.0)},
            "rule": {"shops": 2, "episodes": 1, "queries": 5, "steps": 2},
        },
    }
    config.encoder = {
        "weights": "",  # Hugging Face folder of a pretrained encoder; if empty, n-grams alone
        "prefix": "",  # put before every title, "query: " for the e5 models
        "length": 64,  # tokens of a title, what follows is not read
        "cache": "",  # folder that keeps vectors; if empty, one in the work folder
        "penalties": (60.0, 200.0, 600.0),  # λ of the head that are tried
    }
    config.ngrams = {
        "longest": 5,  # characters of an n-gram at most
        "least_texts": 3,  # titles of sources that an n-gram occurs in at least
        "penalties": (0.3, 1.0, 3.0),  # λ of the head that are tried
    }
    config.tfidf = {"penalties": (0.3, 1.0, 3.0)}  # λ of the baseline's head that are tried
    # Weights of the logits of n-grams, added to those of the encoder, that are tried.
    config.stack = {"shares": (0.25, 0.5, 1.0, 2.0, 4.0)}
    config.rule = {
        "shops": 8,  # source shops that λ and scale are learned on
        "episodes": 1,  # episodes of each of them
        "queries": 60,  # queries of such an episode at most
        "penalty": 100.0,  # λ where learning starts, and where there is no source
        "steps": 20,  # steps of resilient propagation
    }
    return config
