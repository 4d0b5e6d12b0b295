"""The next item of users of a domain that no source is: Beauty, Sports, Toys, each held out.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.recommendation
"""

from ml_collections import ConfigDict

from experiments.ranges import integer, positive, several, text

RANGES = {
    "table": text(),
    "seeds": integer(2),
    "test_users": integer(0),
    "shots": several(integer(1)),
    "users": several(integer(0)),
    "learn.users": integer(1),
    "learn.rivals": integer(1),
    "learn.steps": integer(1),
    "learn.learning_rate": positive(),
}
"""Valid values of the fields."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "recommendation"  # name of the table in results.json
    config.seeds = 3  # draws of the users that weights and counts come from
    config.test_users = 5000  # users of each held-out domain that are tested; 0 for all
    config.shots = (1, 5, 10, 50)  # last items of a user's history that are shown, at most
    # Users of the held-out domain whose histories are read to adapt to it; 0 for all.
    config.users = (100, 1000, 0)
    config.preset = "default"  # named overrides: tiny, quick
    config.presets = {
        # For tests: everything runs, but little is learned.
        "tiny": {
            "seeds": 2,
            "test_users": 20,
            "shots": (1, 50),
            "users": (5, 0),
            "learn": {"users": 20, "rivals": 5, "steps": 5},
        },
        "quick": {"seeds": 2, "test_users": 2000, "shots": (50,), "learn": {"users": 1000}},
    }
    config.learn = {
        "users": 1200,  # users of each source that weights are learned on, at most
        "rivals": 60,  # items that compete with a target: the best at the start, and drawn ones
        "steps": 100,  # steps of Adam, over all users at once
        "learning_rate": 1.5,  # of Adam, falling to 0 by a cosine
    }
    return config
