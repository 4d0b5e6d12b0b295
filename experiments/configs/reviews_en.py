"""Sentiment of English reviews of four shops, from ten others: books, dvd, electronics, kitchen.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.reviews \\
    --config=experiments/configs/reviews_en.py \\
    --config.encoder.weights=multilingual-e5-small --config.encoder.prefix="query: "
"""

from ml_collections import ConfigDict

from experiments.configs import reviews

RANGES = reviews.RANGES


def get_config() -> ConfigDict:
    """Return the config: that of the Chinese reviews, except for what is set here."""
    config = reviews.get_config()
    config.table = "reviews_en"
    config.reviews = "fdu_mtl"
    config.held_out = ("books", "dvd", "electronics", "kitchen_housewares")
    config.encoder.length = 256
    config.encoder.penalties = (200.0, 600.0, 2000.0, 6000.0)
    config.ngrams.update({"unit": "word", "longest": 2, "penalties": (0.01, 0.03, 0.1, 0.3)})
    config.tfidf.penalties = (0.03, 0.1, 0.3, 1.0)
    config.stack.shares = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    return config
