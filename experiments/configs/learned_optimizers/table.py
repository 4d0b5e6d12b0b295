"""Learned optimizers beside tuned hand-made ones (Andrychowicz et al. 2016), all of the table.

    METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.learned_optimizers
    python -m experiments.tables.learned_optimizers --config.problem=quadratic

The paper prints curves and no numbers: the LSTM ends below SGD, RMSprop, Adam and Nesterov.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.ranges import (
    at_least_0,
    integer,
    late,
    multiple,
    one_of,
    positive,
    several,
    switch,
    text,
)

RATES = tuple(float(f"{10 ** (third / 3):.3g}") for third in range(-12, 4))
"""Three a decade, .0001 to 10: of every hand-made optimizer."""


RULES = ("lstm", "rnn", "hyper", "mlp")
HAND_MADE = ("sgd", "nesterov", "rmsprop", "adam", "adamw")
_ESTIMATORS = ("truncated", "full", "evolution", "persistent", "imitation")

RANGES = {
    "table": text(),
    "learner": one_of("", *RULES, *HAND_MADE),
    "learners": several(one_of(*RULES, *HAND_MADE)),
    "problem": text(),
    "problems": several(text()),
    "seed": integer(0),
    "seeds": integer(1),
    "parallel": one_of("jit", "pmap"),
    "rules.*.hidden": integer(1),
    "rules.*.layers": integer(1),
    "rules.*.inner": integer(1),
    "rules.*.p": positive(),
    "rules.*.scale": positive(),
    "least": positive(),
    "cap": positive(),
    "learning_rates": several(positive()),
    "validation_problems": integer(1),
    "test_problems": integer(1),
    "*.validation_problems": integer(1),
    "*.test_problems": integer(1),
    "*.functions": one_of("quadratic", "pictures"),
    "*.domain": text(),
    "*.dim": integer(1),
    "*.variant": one_of("paper", "released"),
    "*.horizon": integer(1),
    "*.chunk": integer(1),
    "*.pictures": one_of("mnist", "fashion_mnist"),
    "*.model": one_of("perceptron", "convolutions"),
    "*.widths": several(integer(1)),
    "*.activation": one_of("sigmoid", "relu", "tanh"),
    "*.batch": integer(1),
    "*.meta_steps": integer(1),
    "*.learning_rate": positive(),
    "*.meta_batch_size": integer(1),
    "*.estimator": one_of(*_ESTIMATORS),
    "*.teacher": one_of(*HAND_MADE),
    "*.teacher_learning_rate": positive(),
    "*.truncation": integer(1),
    "*.first_horizon": integer(0),
    "*.objective": one_of("log", "loss"),
    "*.sigma": positive(),
    "*.curvature": at_least_0(),
    "*.remat": switch(),
    "*.largest": positive(),
    "*.clip": positive(),
    "*.steps_per_call": integer(1),
    "*.log_every": integer(1),
    "*.validate_every": integer(1),
}
"""What the fields may hold of every config that is read by a module of learned optimizers."""

RELATIONS = (
    late(multiple("*.meta_steps", ".steps_per_call")),
    late(multiple("*.log_every", ".steps_per_call")),
    late(multiple("*.validate_every", ".steps_per_call")),
)


def training(
    meta_steps: int, learning_rate: float, meta_batch_size: int, **more: Any
) -> dict[str, Any]:
    """Return how a rule is trained on a problem; what is not named here is as in the paper."""
    return {
        "meta_steps": meta_steps,  # of meta-training
        "learning_rate": learning_rate,  # of the outer Adam: warm-up, then a cosine to 0
        "meta_batch_size": meta_batch_size,  # inner problems side by side
        "estimator": "truncated",  # or full, evolution, persistent, imitation
        "truncation": 20,  # steps of a window
        "first_horizon": 0,  # steps that a curriculum begins with; 0 for none
        "objective": "log",  # of inner losses, what is minimised; or loss itself
        "sigma": 0.01,  # of evolution strategies
        # The largest norm, at a step, of what passes back through the gradient that the rule
        # reads; 0 for the first order of the paper.
        "curvature": 0.0,
        "warmup": {},  # a training that comes first; {} for none
        "remat": False,  # whether inner steps are computed again, which saves memory
        "largest": 1e6,  # a loss above it has diverged: its window counts for nothing
        "clip": 1.0,  # of the norm of the meta-gradient
        "steps_per_call": 1,  # meta-steps a call of the program
        "log_every": meta_steps // 20,  # meta-steps between two lines of metrics
        "validate_every": meta_steps // 20,  # meta-steps between two checkpoints, each scored
    } | more


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "learned_optimizers"  # name of the table in results.json
    config.learner = ""  # one of `learners`; all of them where it is empty
    config.learners = (*RULES, *HAND_MADE)  # rows of the table
    config.problem = ""  # one of `problems`, with its transfers; all of them where it is empty
    config.problems = ("quadratic", "released", "mnist")  # what is minimised, a section each
    config.seed = 0  # of the problems for validation and test
    config.seeds = 5  # of meta-training
    config.parallel = "jit"  # or pmap: how devices share a step
    config.preset = "default"  # overrides by name: tiny
    # For tests: everything runs, nothing is learned.
    few = {
        "meta_steps": 4,
        "meta_batch_size": 2,
        "steps_per_call": 2,
        "log_every": 2,
        "validate_every": 2,
    }
    config.presets = {
        "tiny": {
            "seeds": 2,
            "learning_rates": (0.01, 0.1),
            "validation_problems": 4,
            "test_problems": 4,
            **{
                problem: {"train": dict.fromkeys(("lstm", "rnn", "hyper", "mlp"), few)}
                for problem in ("quadratic", "released")
            },
            "mnist": {
                "train": dict.fromkeys(("rnn", "hyper", "mlp"), few)
                | {"lstm": few | {"warmup": few}}
            },
        },
    }

    config.rules = {
        "lstm": {
            "hidden": 20,  # units of a layer
            "layers": 2,  # of the network
            "p": 10.0,  # of the gradient's logarithm: what is below exp(-p) is as good as 0
            "scale": 0.1,  # of the update
        },
        "rnn": {"hidden": 20, "layers": 2, "p": 10.0, "scale": 0.1},
        "hyper": {
            "hidden": 32,  # units of the recurrent network
            "inner": 4,  # units of the network that it makes
            "scale": 0.01,  # of the update
        },
        "mlp": {
            "hidden": 8,  # units of the network
            "scale": 0.01,  # of the update
        },
    }
    config.least = 1e-12  # a loss below it counts as it
    config.cap = 1e6  # a loss above it counts as it, as does a run that diverges
    config.learning_rates = RATES  # that every hand-made optimizer is tuned over
    config.validation_problems = 64  # that checkpoints and rates are chosen on
    config.test_problems = 100  # of a cell

    config.quadratic = {
        "functions": "quadratic",  # what is minimised: quadratic or pictures
        "domain": "10-dim",  # name in the table
        "dim": 10,  # of the quadratics
        "variant": "paper",  # of the quadratics: paper or released
        "horizon": 100,  # steps that an optimizer takes
        "chunk": 128,  # problems side by side where an optimizer is scored
        "train": {
            "lstm": training(4000, 3e-3, 128, steps_per_call=50),
            "rnn": training(4000, 3e-3, 128, steps_per_call=50),
            "hyper": training(4000, 3e-3, 128, steps_per_call=50),
            "mlp": training(4000, 3e-3, 128, steps_per_call=50),
        },
        # What is other than in training, where the trained rules are scored too.
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
            "lstm": training(1000, 3e-3, 32, steps_per_call=50),
            "rnn": training(1000, 3e-3, 32, steps_per_call=50),
            "hyper": training(1000, 3e-3, 32, steps_per_call=50),
            "mlp": training(1000, 3e-3, 32, steps_per_call=50),
        },
        "transfer": {"longer": {"horizon": 200}, "longest": {"horizon": 1000}},
    }
    config.mnist = {
        "functions": "pictures",
        "domain": "20 units",
        "pictures": "mnist",  # or fashion_mnist
        "model": "perceptron",  # or convolutions
        "widths": (20,),  # of the hidden layers, or of each convolution
        "activation": "sigmoid",  # or relu, tanh
        "batch": 128,  # pictures a step
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
                warmup=training(
                    *(800, 3e-3, 1),
                    estimator="imitation",
                    teacher="nesterov",  # whose updates are imitated
                    teacher_learning_rate=1.0,  # of the teacher
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
