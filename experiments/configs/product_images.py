"""Which of five products a photo shows, from one or a few photos of each: Fashion-MNIST.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.product_images

Five of the ten classes are held out at a time; the other five teach.
"""

from ml_collections import ConfigDict

from experiments.ranges import at_least_0, integer, one_of, positive, several, text

SPLITS = ("tops", "other products", "mixed 1", "mixed 2")

RANGES = {
    "table": text(),
    "splits": several(one_of(*SPLITS)),
    "seeds": several(integer(0)),
    "shots": several(integer(1)),
    "unlabelled": integer(0),
    "queries": integer(1),
    "episodes": integer(2),
    "channels": integer(1),
    "steps": integer(1),
    "meta_batch_size": integer(1),
    "learning_rate": positive(),
    "tasks_per_chunk": integer(0),
    "parallel": one_of("jit", "pmap"),
    "steps_per_call": integer(0),
    "log_every": integer(1),
    "checkpoint_every": integer(1),
    "denoising.pictures": integer(1),
    "denoising.sigma": at_least_0(),
    "denoising.occlusion": integer(0, 14),
    "prototypical.shots": integer(1),
    "prototypical.queries": integer(1),
    "anil.shots": integer(1),
    "anil.queries": integer(1),
    "anil.inner_learning_rate": positive(),
    "anil.inner_steps": integer(1),
    "choosing.episodes": integer(2),
    "choosing.penalties": several(positive()),
    "choosing.learning_rates": several(positive()),
}
"""Valid values of the fields."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "product_images"  # name of the table in results.json
    config.splits = SPLITS  # what is held out, each in turn
    config.seeds = (0, 1, 2)  # seeds of the training
    config.shots = (1, 5)  # photos of each product that are given
    config.unlabelled = 50  # further photos of each product, that have no label
    config.queries = 5  # photos of each product that are asked for
    config.episodes = 600  # episodes of each split, the same for all methods and seeds
    config.channels = 64  # channels of each convolution, which is the number of features
    config.steps = 300  # training steps of each stage
    config.meta_batch_size = 4  # episodes of a step
    config.learning_rate = 2e-3  # rate of the outer Adam, which falls to 0
    config.tasks_per_chunk = 0  # episodes that a device maps over at once; 0 for all
    config.parallel = "jit"  # how devices share a step: jit or pmap
    config.steps_per_call = 0  # steps per call of the program; 0: 1 on a CPU, else 50 or a divisor
    config.log_every = 50  # steps between two lines of metrics
    config.checkpoint_every = 300  # steps between two checkpoints
    config.preset = "default"  # named overrides: quick or tiny
    config.presets = {
        # A first look: one seed, no choice.
        "quick": {
            "seeds": (0,),
            "episodes": 200,
            "choosing": {"penalties": (1.0,), "learning_rates": (0.05,)},
        },
        # For tests: everything runs, but nothing is learned.
        "tiny": {
            "splits": ("tops",),
            "seeds": (0, 1),
            "shots": (1, 2),
            "unlabelled": 1,
            "queries": 1,
            "episodes": 4,
            "channels": 4,
            "steps": 2,
            "meta_batch_size": 1,
            "log_every": 1,
            "checkpoint_every": 2,
            "denoising": {"pictures": 1},
            "prototypical": {"shots": 1, "queries": 1},
            "anil": {"shots": 1, "queries": 1, "inner_steps": 1},
            "choosing": {"episodes": 2, "penalties": (0.1, 1.0), "learning_rates": (0.05, 0.25)},
        },
    }
    config.denoising = {
        "pictures": 4,  # pictures of each of five classes, which it is not told
        "sigma": 0.3,  # standard deviation of the noise, in units of the full range
        "occlusion": 5,  # side of the black square, of 14
    }
    config.prototypical = {
        "shots": 1,  # photos of each class that are given in training
        "queries": 5,  # photos of each class that are asked for in training
    }
    config.anil = {
        "shots": 1,
        "queries": 5,
        "inner_learning_rate": 0.05,  # rate of the inner loop in training
        "inner_steps": 5,  # steps of the inner loop, in training and at test
    }
    config.choosing = {
        "episodes": 200,  # episodes of the two source classes that are left out
        "penalties": (1.0, 10.0, 100.0),  # λ of ridge regression that are tried
        "learning_rates": (0.01, 0.05, 0.25),  # rates of the head's descent that are tried
    }
    return config
