"""The guide on real Chinese shop reviews, online_shopping_10_cats; 2 CPU cores, 17 minutes.

    METAGUIDE_DATA_DIR=FOLDER python -m experiments.guide \
        --config=experiments/configs/guide_reviews_zh.py --workdir=runs/guide_reviews_zh

Two tasks: the sentiment of reviews of water heaters and clothing, which no stage has seen; and the
category of a review out of five, those two and three source categories.
"""

from ml_collections import ConfigDict

from experiments.configs import guide_bazaar

SOURCES = ("书籍", "平板", "手机", "水果", "洗发水", "计算机", "酒店", "source categories")


def get_config() -> ConfigDict:
    """Return the config: the bazaar's, except for what is set here."""
    config = guide_bazaar.get_config()
    config.table = "reviews_zh"
    config.preset = "default"  # named overrides: full, pretrained or tiny
    config.log_every = 50
    config.checkpoint_every = 500
    config.data = {
        "world": "online_shopping",
        "sources": (),
        "held_out": ("热水器", "衣服"),
        "validation": ("蒙牛",),
        "seed": 0,  # seed that draws the reviews set aside
        "most": 0,  # maximum reviews read of each category, drawn by the seed; 0 for all
        "aside": 400,  # reviews per category, for classification, that no training stage reads
    }
    config.text = {"vocabulary": 8000, "text": 48, "pair": 48, "name": 4, "buckets": 65536}
    config.model.update({"width": 128, "image": False})
    config.pretrain.update({"steps": 1000, "learning_rate": 2e-3})
    config.pretrain.weights.update({"denoising": 0.0, "image_text": 0.0})
    config.multitask.update({"steps": 800, "learning_rate": 1e-3})
    config.metatrain.update({"steps": 60})
    config.metatrain.domain_weights = dict.fromkeys(SOURCES, 1.0)
    config.adapt.methods["vectors+words"] = ("classification",)
    config.presets = {
        "full": {
            "seeds": 3,
            "adapt": {"episodes": 600},
            "metatrain": {"learners": ("maml", "first-order", "anil", "prototypical")},
        },
        # On the vectors of a pretrained encoder, frozen; needs encoder.weights.
        "pretrained": {
            "table": "reviews_zh_pretrained",
            "data": {"most": 1000, "aside": 100},
            "encoder": {"prefix": "query: "},
            "model": {"layers": 0, "width": 384},
            "metatrain": {"learners": ("anil", "prototypical")},
        },
        "tiny": {
            "data": {"aside": 40},
            "model": {"width": 16, "layers": 1},
            "pretrain": {"steps": 4, "batch": 8},
            "multitask": {"steps": 4, "meta_batch_size": 2},
            "metatrain": {"steps": 2, "meta_batch_size": 1, "inner_steps": 1},
            "adapt": {"episodes": 4, "steps": 2, "validation_episodes": 2},
            "episodes": {"queries": 6},
        },
    }
    return config
