"""Sine waves from 10 points, the regression table of MAML (Finn et al. 2017, section 5.1).

python -m experiments.tables.sinusoid                       all learners, 5 seeds, both
                                                            initialisations, all 70,000 steps
python -m experiments.tables.sinusoid --config.learner=maml --config.seeds=1

After 1 step at 5 points, MAML's published error is .67; here it depends on the initialisation.
"""

from ml_collections import ConfigDict

from experiments.ranges import (
    at_least_0,
    at_most,
    integer,
    late,
    multiple,
    one_of,
    optional,
    positive,
    several,
    share,
    switch,
    text,
)

LEARNERS = ("maml", "first-order", "meta-sgd", "reptile", "imaml", "pretrained")

RANGES = {
    "table": text(),
    "learner": one_of("", *LEARNERS),
    "learners": several(one_of(*LEARNERS)),
    "initialisers": several(one_of("truncated", "he", "lecun")),
    "seed": integer(0),
    "seeds": integer(1),
    "parallel": one_of("jit", "pmap"),
    "widths": several(integer(1)),
    "steps": integer(1),
    "meta_batch_size": integer(1),
    "tasks_per_chunk": integer(0),
    "train_shots": integer(1),
    "test_shots": several(integer(1)),
    "test_tasks": integer(1),
    "test_steps": integer(1),
    "shown_steps": several(integer(0)),
    "validation_tasks": integer(1),
    "learning_rate": positive(),
    "steps_per_call": integer(1),
    "log_every": integer(1),
    "checkpoint_every": integer(1),
    "pretrained.learning_rates": optional(several(positive())),
    "*.inner": one_of("sgd", "adam", "annealed"),
    "*.inner_learning_rate": positive(),
    "*.inner_steps": integer(1),
    "*.mode": one_of("unrolled", "remat", "mixed"),
    "*.batch": integer(1),
    "*.keep_state": switch(),
    "*.outer_learning_rate": share(zero=False),
    "*.strength": positive(),
    "*.cg_steps": integer(1),
    "*.damping": at_least_0(),
    "*.steps": integer(1),
    "*.train_shots": integer(1),
    "*.test_steps": integer(1),
}
"""Valid values of the fields."""

RELATIONS = (
    late(multiple("steps", "steps_per_call")),
    late(multiple("log_every", "steps_per_call")),
    late(multiple("checkpoint_every", "steps_per_call")),
    late(multiple("meta_batch_size", "tasks_per_chunk")),
    late(at_most("shown_steps", "test_steps")),
)


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "sinusoid"  # name of the table in results.json
    config.learner = ""  # one of `learners`; if empty, all of them
    config.learners = LEARNERS  # rows of the table
    # Initialisers of all kernels: a normal with σ = .01 truncated at 2σ, as in MAML's code, and
    # He's.
    config.initialisers = ("truncated", "he")
    config.seed = 0  # seed of the test tasks
    config.seeds = 5  # number of training seeds, from 0
    config.parallel = "jit"  # how devices share a step: jit or pmap
    config.preset = "default"  # named overrides: reduced or tiny
    config.presets = {
        "reduced": {
            "table": "sinusoid_reduced",
            "steps": 10_000,
            "seeds": 2,
            "imaml": {"steps": 10_000},
        },
        # For tests: everything runs, but nothing is learned.
        "tiny": {
            "steps": 20,
            "seeds": 2,
            "steps_per_call": 10,
            "log_every": 10,
            "checkpoint_every": 20,
            "test_tasks": 8,
            "validation_tasks": 8,
            "imaml": {"steps": 20},
        },
    }

    config.widths = (40, 40)  # widths of the hidden layers
    config.steps = 70_000  # training steps, unless the learner sets its own
    config.meta_batch_size = 25  # waves per step
    config.tasks_per_chunk = 0  # tasks that a device maps over at once; 0 for all
    config.train_shots = 10  # points in the support, and in the query
    config.test_shots = (5, 10)  # points at test
    config.test_tasks = 600  # test waves per cell
    config.test_steps = 10  # inner steps at test
    config.shown_steps = (1, 5, 10)  # inner steps after which the table has a row
    # waves that the learning rate of the pre-trained network is chosen on
    config.validation_tasks = 200
    config.learning_rate = 1e-3  # learning rate of the outer Adam
    config.steps_per_call = 100  # steps per call of the program
    config.log_every = 1000  # steps between two lines of metrics, a multiple of steps_per_call
    config.checkpoint_every = 10_000  # steps between two checkpoints, a multiple of steps_per_call

    config.maml = {
        "inner_learning_rate": 0.01,  # learning rate of the inner loop
        "inner_steps": 1,  # inner steps in training
        "mode": "unrolled",  # how the inner loop is differentiated: unrolled, remat or mixed
    }
    config["first-order"] = {"inner_learning_rate": 0.01, "inner_steps": 1}
    config["meta-sgd"] = {"inner_learning_rate": 0.01, "inner_steps": 1}
    # The inner rule of Nichol et al. 2018 for pictures. It was chosen on validation waves among SGD
    # and Adam, with and without keeping its state.
    config.reptile = {
        "inner": "adam",  # the inner rule: sgd, adam or annealed
        "inner_learning_rate": 0.01,  # learning rate of the inner rule
        "inner_steps": 10,  # inner steps in training
        "batch": 10,  # points per inner step
        "keep_state": True,  # whether the inner rule's state carries over from task to task
        "outer_learning_rate": 1.0,  # initial share of the way to the adapted parameters
    }
    # As many meta-training steps as in the paper's Omniglot table. If the inner loop stops far from
    # its minimum, the estimate is not a gradient of the loss, which then grows: this happened here
    # with constant rates, with and without clipping. The settings were chosen on training waves; no
    # value is published. At test it takes as many inner steps as in training, because its solution
    # is at the end of them.
    config.imaml = {
        "inner": "annealed",  # the inner rule: sgd, adam or annealed
        "inner_learning_rate": 0.02,  # learning rate of the inner rule
        "inner_steps": 64,  # inner steps in training
        "strength": 100.0,  # λ of the pull towards the meta-parameters
        "cg_steps": 5,  # steps of conjugate gradients
        "damping": 0.0,  # damping of conjugate gradients
        "steps": 20_000,  # training steps
        "test_steps": 64,  # inner steps at test
    }
    # Trained on all waves at once; its learning rate at test is chosen on validation tasks.
    config.pretrained = {"learning_rates": (0.0003, 0.001, 0.003, 0.01, 0.03)}
    return config
