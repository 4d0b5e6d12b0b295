"""One guide for all tasks and shops, against guides of one task or one shop; English, real data.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.universal \\
    --config.encoder.weights=multilingual-e5-small --config.encoder.prefix="query: "
"""

from ml_collections import ConfigDict

from experiments.configs import guide_bazaar
from experiments.configs.guide_bazaar import ALL, CLASSES, RELATIONS
from experiments.ranges import one_of, several, text

__all__ = ["RANGES", "RELATIONS", "get_config"]

GUIDES = ("universal", "one task", "one shop")

RANGES = {
    **guide_bazaar.RANGES,
    "guides": several(one_of(*GUIDES)),
    "one_shop": several(text()),
}
"""Valid values of the fields."""


def get_config() -> ConfigDict:
    """Return the config: the bazaar's, except for what is set here."""
    config = guide_bazaar.get_config()
    config.table = "universal"
    config.guides = GUIDES  # universal, one task, one shop: guides that are trained and compared
    # Source shops that teach the guide of one shop; together they have every task.
    config.one_shop = ("electronics", "beauty")
    config.preset = "default"  # named overrides: full, quick or tiny
    config.log_every = 50
    config.checkpoint_every = 500
    config.data = {
        "world": "shops",
        "sources": (),
        "held_out": ("books", "kitchen", "toys"),
        "validation": ("laundry", "movies", "sports"),
        "seed": 0,  # seed that draws what is read of a shop
        "most": 500,  # maximum reviews, questions, users and titles read of a shop; 0 for all
        "characters": 800,  # maximum characters of a text that is asked about
    }
    config.text = {"vocabulary": 8000, "text": 64, "pair": 256, "name": 16, "buckets": 65536}
    config.model.update({"width": 64, "image": False})
    config.episodes.update({"way": 10, "shots": 5, "candidates": 256, "max_answer_tokens": 16})
    config.pretrain.update({"steps": 300, "learning_rate": 2e-3})
    config.pretrain.weights.update({"denoising": 0.0, "image_text": 0.0})
    config.multitask.update({"steps": 400, "meta_batch_size": 2, "users": 16})
    config.metatrain.learners = ()
    config.metatrain.domain_weights = {}
    config.adapt.update({"shots": (0, 1, 5)})
    config.adapt.methods.update(
        {
            "zero-shot": ALL,
            "map-head": CLASSES,
            "ridge": ("classification",),
            "vectors+words": ("classification",),
            "head-only": ("questions",),
            "fine-tuning": (),
        }
    )
    config.presets = {
        "full": {
            "data": {"most": 0},
            "pretrain": {"steps": 2000},
            "multitask": {"steps": 3000},
            "adapt": {"episodes": 600},
        },
        # A first look: one seed, short training, little data.
        "quick": {
            "seeds": 1,
            "data": {"most": 200},
            "pretrain": {"steps": 20},
            "multitask": {"steps": 60},
            "adapt": {"episodes": 20},
        },
        # For tests: everything runs, but nothing is learned.
        "tiny": {
            "seeds": 1,
            "data": {"most": 30},
            "text": {"vocabulary": 300, "text": 12, "pair": 48, "name": 4, "buckets": 256},
            "model": {"width": 8, "heads": 2},
            "pretrain": {"steps": 2, "batch": 4},
            "multitask": {"steps": 2, "meta_batch_size": 1, "users": 2},
            "adapt": {"episodes": 3, "queries": 4, "users": 2, "validation_episodes": 2},
            "episodes": {"way": 2, "queries": 3, "candidates": 8},
        },
    }
    return config
