"""Sine waves from 10 points, the regression table of MAML (Finn et al. 2017, section 5.1).

python -m experiments.tables.sinusoid                       all learners, 5 seeds, both
                                                            initialisations, the full 70,000 steps
python -m experiments.tables.sinusoid --config.learner=maml --config.seeds=1

Expected after 1 step at 5 points: MAML .67 in print, here by the initialisation.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "sinusoid"
    config.learner = ""  # one of `learners`; all of them where it is empty
    config.learners = ("maml", "first-order", "meta-sgd", "reptile", "imaml", "pretrained")
    # Of all kernels: normal of σ = .01 cut at 2σ, as MAML's code has it, and He's.
    config.initialisers = ("truncated", "he")
    config.seed = 0
    config.seeds = 5
    config.parallel = "jit"  # or pmap
    config.preset = "default"
    config.presets = {
        "reduced": {
            "table": "sinusoid_reduced",
            "steps": 10_000,
            "seeds": 2,
            "imaml": {"steps": 10_000},
        },
        # For tests: everything runs, nothing is learned.
        "tiny": {
            "steps": 20,
            "seeds": 2,
            "span": 10,
            "log_every": 10,
            "checkpoint_every": 20,
            "test_tasks": 8,
            "validation_tasks": 8,
            "imaml": {"steps": 20},
        },
    }

    config.widths = (40, 40)
    config.steps = 70_000
    config.tasks = 25  # a step
    config.tasks_per_chunk = 0  # that a device maps over at once; 0 for all of them
    config.train_shots = 10  # points of the support, and of the query
    config.test_shots = (5, 10)  # points at test
    config.test_tasks = 600
    config.test_steps = 10
    config.shown_steps = (1, 5, 10)
    config.validation_tasks = 200
    config.rate = 1e-3  # of the outer Adam
    config.span = 100  # steps that one call of the program takes
    config.log_every = 1000
    config.checkpoint_every = 10_000

    config.maml = {"inner_rate": 0.01, "inner_steps": 1, "mode": "unrolled"}
    config["first-order"] = {"inner_rate": 0.01, "inner_steps": 1}
    config["meta-sgd"] = {"inner_rate": 0.01, "inner_steps": 1}
    # The inner rule of Nichol et al. 2018 for pictures; chosen on validation waves among SGD and
    # Adam, with its state kept or not.
    config.reptile = {
        "inner": "adam",
        "inner_rate": 0.01,
        "inner_steps": 10,
        "batch": 10,
        "keep_state": True,
        "outer_rate": 1.0,
    }
    # As many steps as in its paper's table of Omniglot. Where the inner loop stops far from its
    # minimum the gradient is none of the loss, which grows: constant rates, with the gradient
    # clipped or not, did so here. Chosen on waves drawn in training; no value is in print. At test
    # it takes as many steps as in training: its solution is at the end of them.
    config.imaml = {
        "inner": "annealed",
        "inner_rate": 0.02,
        "inner_steps": 64,
        "strength": 100.0,
        "cg_steps": 5,
        "damping": 0.0,
        "steps": 20_000,
        "test_steps": 64,
    }
    # Trained on all waves at once; its rate at test is chosen on validation tasks.
    config.pretrained = {"rates": (0.0003, 0.001, 0.003, 0.01, 0.03)}
    return config
