"""Few-shot sentiment of Amazon's reviews, ARSC: 12 tasks of four domains, with a fixed support.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.reviews --config=experiments/configs/arsc.py
"""

from ml_collections import ConfigDict

from experiments.configs import reviews

RANGES = reviews.RANGES


def get_config() -> ConfigDict:
    """Return the config: that of the Chinese reviews, except for what is set here."""
    config = reviews.get_config()
    config.table = "arsc"
    config.reviews = "arsc"
    targets = ("books", "dvd", "electronics", "kitchen_housewares")
    config.held_out = tuple(f"{one}.{stars}" for stars in ("t2", "t4", "t5") for one in targets)
    config.shots = (0, 5)
    config.ngrams.update({"unit": "word", "longest": 2, "penalties": (0.03, 0.1, 0.3)})
    config.tfidf.penalties = (0.03, 0.1, 0.3, 1.0)
    return config
