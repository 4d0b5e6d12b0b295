"""Which product a title is of: electronics teach home appliances, and the reverse; 20 products.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.products \\
    --config.encoder.weights=multilingual-e5-small --config.encoder.prefix="query: "
"""

from ml_collections import ConfigDict

from experiments.ranges import integer, positive, several, text

RANGES = {
    "table": text(),
    "seeds": several(integer(0)),
    "way": integer(2),
    "shots": several(integer(1)),
    "queries": integer(1),
    "episodes": integer(2),
    "encoder.weights": text(),
    "encoder.prefix": text(),
    "encoder.length": integer(3),
    "encoder.cache": text(),
    "learning.episodes": integer(1),
    "learning.steps": integer(1),
    "learning.rate": positive(),
    "learning.penalties": several(positive()),
}
"""Valid values of the fields."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "products"  # name of the table in results.json
    config.seeds = (0, 1, 2)  # seeds of the episodes that are learned on, a rule for each
    config.way = 20  # products of an episode
    config.shots = (1, 5)  # titles of each product that are given
    config.queries = 3  # titles of each product that are asked for
    config.episodes = 600  # episodes of each held-out category, the same for all methods and seeds
    config.preset = "default"  # named overrides: quick or tiny
    config.presets = {
        # A first look: one rule, and λ as the sources chose it for appliances.
        "quick": {
            "seeds": (0,),
            "episodes": 100,
            "learning": {"episodes": 6, "penalties": (0.3,)},
        },
        # For tests: everything runs, but nothing is learned.
        "tiny": {
            "seeds": (0, 1),
            "way": 3,
            "shots": (1, 2),
            "queries": 1,
            "episodes": 4,
            "learning": {"episodes": 2, "steps": 2, "penalties": (0.1, 1.0)},
        },
    }
    config.encoder = {
        "weights": "",  # Hugging Face folder of a pretrained encoder; if empty, n-grams alone
        "prefix": "",  # put before every title, "query: " for the e5 models
        "length": 64,  # tokens of a title, what follows is not read
        "cache": "",  # folder that keeps vectors; if empty, one in the work folder
    }
    config.learning = {
        "episodes": 12,  # episodes of each source category and number of shots
        "steps": 60,  # steps of Adam
        "rate": 0.1,  # learning rate
        "penalties": (0.03, 0.3, 3.0),  # λ that are tried, each source left out in turn
    }
    return config
