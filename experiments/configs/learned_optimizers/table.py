"""Learned optimizers beside tuned hand-made ones (Andrychowicz et al. 2016), all of the table.

    METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.learned_optimizers
    python -m experiments.tables.learned_optimizers --config.problem=quadratic

The paper prints curves and no numbers: the LSTM ends below SGD, RMSprop, Adam and Nesterov.
"""

from typing import Any

from ml_collections import ConfigDict

RATES = tuple(float(f"{10 ** (third / 3):.3g}") for third in range(-12, 4))
"""Three a decade, .0001 to 10: of every hand-made optimizer."""


def training(meta_steps: int, rate: float, tasks: int, **more: Any) -> dict[str, Any]:
    """Return how a rule is trained on a problem; what is not named here is as in the paper."""
    return {
        "meta_steps": meta_steps,
        "rate": rate,  # of the outer Adam; a cosine to 0 after a warm-up of a twentieth
        "tasks": tasks,  # inner problems side by side
        "estimator": "truncated",  # or full, evolution, persistent, imitation
        "truncation": 20,  # steps of a window
        "first_horizon": 0,  # steps that a curriculum begins with; 0 for none
        "objective": "log",  # or loss
        "sigma": 0.01,  # of evolution strategies
        # The largest norm, at a step, of what passes back through the gradient that the rule reads;
        # 0 for the first order of the paper.
        "curvature": 0.0,
        "lesson": {},  # a training that comes first; {} for none
        "remat": False,
        "largest": 1e6,  # a loss above it has diverged: its window counts for nothing
        "clip": 1.0,  # of the norm of the meta-gradient
        "span": 1,  # steps a call
        "log_every": meta_steps // 20,
        "validate_every": meta_steps // 20,
    } | more


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "learned_optimizers"
    config.learner = ""  # one of `learners`; all of them where it is empty
    config.learners = (
        *("lstm", "rnn", "hyper", "mlp"),
        *("sgd", "nesterov", "rmsprop", "adam", "adamw"),
    )
    config.problem = ""  # one of `problems`, with its transfers; all of them where it is empty
    config.problems = ("quadratic", "released", "mnist")
    config.seed = 0  # of the problems for validation and test
    config.seeds = 5  # of meta-training
    config.parallel = "jit"  # or pmap
    config.preset = "default"
    # For tests: everything runs, nothing is learned.
    few = {"meta_steps": 4, "tasks": 2, "span": 2, "log_every": 2, "validate_every": 2}
    config.presets = {
        "tiny": {
            "seeds": 2,
            "rates": (0.01, 0.1),
            "validation_problems": 4,
            "test_problems": 4,
            **{
                problem: {"train": dict.fromkeys(("lstm", "rnn", "hyper", "mlp"), few)}
                for problem in ("quadratic", "released")
            },
            "mnist": {
                "train": dict.fromkeys(("rnn", "hyper", "mlp"), few)
                | {"lstm": few | {"lesson": few}}
            },
        },
    }

    config.rules = {
        "lstm": {"hidden": 20, "layers": 2, "p": 10.0, "scale": 0.1},
        "rnn": {"hidden": 20, "layers": 2, "p": 10.0, "scale": 0.1},
        "hyper": {"hidden": 32, "inner": 4, "scale": 0.01},
        "mlp": {"hidden": 8, "scale": 0.01},
    }
    # Losses outside these count as these; a run that diverges counts as the latter.
    config.least, config.cap = 1e-12, 1e6
    config.rates = RATES
    config.validation_problems = 64
    config.test_problems = 100

    config.quadratic = {
        "functions": "quadratic",
        "domain": "10-dim",
        "dim": 10,
        "variant": "paper",
        "horizon": 100,
        "chunk": 128,  # problems side by side where an optimizer is judged
        "train": {
            "lstm": training(4000, 3e-3, 128, span=50),
            "rnn": training(4000, 3e-3, 128, span=50),
            "hyper": training(4000, 3e-3, 128, span=50),
            "mlp": training(4000, 3e-3, 128, span=50),
        },
        # What is other than in training, where the trained rules are judged too.
        "transfer": {
            "longer": {"horizon": 200},
            "longest": {"horizon": 1000},
            "dim-5": {"domain": "5-dim", "dim": 5},
            "dim-30": {"domain": "30-dim", "dim": 30},
        },
    }
    config.released = {
        "functions": "quadratic",
        "domain": "10-dim",
        "dim": 10,
        "variant": "released",
        "horizon": 100,
        "chunk": 128,
        "train": {
            "lstm": training(1000, 3e-3, 32, span=50),
            "rnn": training(1000, 3e-3, 32, span=50),
            "hyper": training(1000, 3e-3, 32, span=50),
            "mlp": training(1000, 3e-3, 32, span=50),
        },
        "transfer": {"longer": {"horizon": 200}, "longest": {"horizon": 1000}},
    }
    config.mnist = {
        "functions": "pictures",
        "domain": "20 units",
        "pictures": "mnist",
        "model": "perceptron",
        "widths": (20,),
        "activation": "sigmoid",
        "batch": 128,
        "horizon": 100,
        "chunk": 1,  # one at a time it takes a third of the time: a chunk of coordinates is enough
        "validation_problems": 20,
        "train": {
            # Of first order, from nothing, it is best after some 300 meta-steps and then unlearns.
            # Of second order it goes on getting better for thousands. The teacher is the best that
            # is made by hand, at its rate. All seen on validation.
            "lstm": training(
                *(4000, 1e-3, 1),
                truncation=50,
                curvature=2.0,
                lesson=training(
                    *(800, 3e-3, 1),
                    estimator="imitation",
                    teacher="nesterov",
                    teacher_rate=1.0,
                    validate_every=200,
                ),
            ),
            "rnn": training(800, 3e-3, 1, validate_every=50),
            # By truncated back-propagation, and by a full unroll, both are best after some 100
            # meta-steps and then unlearn; seen on validation problems, as is the rate.
            "hyper": training(4800, 3e-3, 4, estimator="persistent", validate_every=400),
            "mlp": training(2400, 3e-3, 4, estimator="persistent", validate_every=200),
        },
        "transfer": {
            "longer": {"horizon": 200},
            "longest": {"horizon": 1000},
            "units-40": {"domain": "40 units", "widths": (40,)},
            "layers-2": {"domain": "2 layers", "widths": (20, 20)},
            "relu": {"domain": "ReLU", "activation": "relu"},
        },
    }
    return config
