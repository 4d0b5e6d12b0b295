"""Answers to questions about reviews of shops that no source is: books and movies, from SubjQA.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.questions \\
    --config.encoder.weights=multilingual-e5-small --config.encoder.prefix="query: "
"""

from ml_collections import ConfigDict

from experiments.ranges import TUNED, at_least_0, integer, positive, several, text

RANGES = {
    "table": text(),
    "held_out": several(text()),
    "seed": integer(0),
    "seeds": several(integer(0)),
    "shots": several(integer(0)),
    "episodes": integer(2),
    "most": integer(0),
    "max_answer_tokens": integer(1),
    "candidates": integer(1),
    "encoder.weights": text(),
    "encoder.prefix": text(),
    "encoder.length": integer(16),
    "encoder.cache": text(),
    **{f"reader.{field}": valid for field, valid in TUNED.items()},
    "reader.epochs": positive(),
    "threshold.seen": several(at_least_0()),
    "threshold.episodes": integer(1),
}
"""Valid values of the fields."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "questions"  # name of the table in results.json
    config.held_out = ("books", "movies")  # domains that are held out together
    config.seed = 0  # seed of the questions that are drawn to adapt to
    config.seeds = (0,)  # seeds of the readers
    config.shots = (0, 5, 20)  # questions of a held-out domain that are answered beforehand
    config.episodes = 100  # draws of these questions
    config.most = 0  # questions of a part that are asked at most, from the first; 0 for all
    config.max_answer_tokens = 30  # longest answer
    config.candidates = 50  # likeliest answers of a text that the one to give is chosen among
    config.preset = "default"  # named overrides: quick or tiny
    config.presets = {
        # A first look: nothing but the head is trained, and few questions are asked.
        "quick": {"most": 60, "reader": {"layers": 0, "epochs": 0.2}, "episodes": 20},
        # For tests: everything runs, but nothing is learned.
        "tiny": {
            "shots": (0, 2),
            "episodes": 3,
            "most": 4,
            "encoder": {"length": 32},
            "reader": {"layers": 1, "batch": 2, "epochs": 0.1, "log_every": 1},
            "threshold": {"seen": (1.0, 10.0), "episodes": 2},
        },
    }
    config.encoder = {
        "weights": "",  # Hugging Face folder of a pretrained encoder; if empty, baselines alone
        "prefix": "",  # put before every text, "query: " for the e5 models
        "length": 128,  # tokens of a window with its question
        "cache": "",  # folder that keeps vectors; if empty, one in the work folder
    }
    config.reader = {
        "layers": 12,  # last layers of the encoder that train; its embeddings do not
        "epochs": 0.6,  # windows that are read, as a multiple of the answers of the sources
        "batch": 16,  # windows of a step
        "learning_rate": 8e-5,  # rate of the layers, which rises for a tenth and falls to 0
        "head_learning_rate": 1e-3,  # rate of the head
        "weight_decay": 0.01,  # of AdamW
        "dropout": 0.1,  # dropout rate of the encoder
        "log_every": 20,  # steps between two lines of metrics
        "checkpoint_every": 100,  # steps between two checkpoints
    }
    config.threshold = {
        # As how many questions the sources count beside those of the domain; tried on the sources.
        "seen": (10.0, 30.0, 100.0, 300.0, 1000.0),
        "episodes": 20,  # draws of questions of each source
    }
    return config
