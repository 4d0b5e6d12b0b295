"""Sentiment in the sixteen domains of FDU-MTL, each taught by all and tested on its own part.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.in_domain
"""

from ml_collections import ConfigDict

from experiments.ranges import integer, positive, several, text

RANGES = {
    "table": text(),
    "seeds": several(integer(0)),
    "development": integer(2),
    "most": integer(0),
    "ngrams.longest": integer(1, 3),
    "ngrams.least_texts": integer(1),
    "penalties": several(positive()),
    "own": several(positive()),
}
"""Valid values of the fields."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "in_domain"  # name of the table in results.json
    config.seeds = (0, 1, 2)  # seeds of the reviews that choices are made on
    config.development = 200  # reviews of a domain that choices are made on; the rest trains
    config.most = 0  # reviews of a part that are read at most, from the first; 0 for all
    config.ngrams = {
        "longest": 2,  # words of an n-gram at most
        "least_texts": 2,  # n-grams of fewer texts have no weight
    }
    config.penalties = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # λ of the heads, to choose from
    config.own = (0.3, 1.0, 3.0)  # ρ, how far a domain's head may be from the shared one
    config.preset = "default"  # named overrides: tiny
    config.presets = {
        "tiny": {"seeds": (0,), "development": 8, "most": 40, "penalties": (1.0,), "own": (1.0,)},
    }
    return config
