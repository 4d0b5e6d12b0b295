"""Learned optimizers against tuned hand-made ones (Andrychowicz et al. 2016): the complete table.

    METAGUIDE_DATA_DIR=FOLDER python -m experiments.tables.learned_optimizers
    python -m experiments.tables.learned_optimizers --config.problem=quadratic

The paper shows curves but no numbers: the LSTM ends below SGD, RMSprop, Adam and Nesterov.
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
"""Learning rates of every hand-made optimizer: three per decade, from .0001 to 10."""


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
"""Valid values of the fields of every config that a module of learned optimizers reads."""

RELATIONS = (
    late(multiple("*.meta_steps", ".steps_per_call")),
    late(multiple("*.log_every", ".steps_per_call")),
    late(multiple("*.validate_every", ".steps_per_call")),
)


def training(
    meta_steps: int, learning_rate: float, meta_batch_size: int, **more: Any
) -> dict[str, Any]:
    """Return the section for training a rule on a problem; what it does not set is as in the paper.

    The comments are the help of the fields.
    """
    return {
        "meta_steps": meta_steps,  # number of meta-training steps
        # peak learning rate of the outer Adam: warm-up, then a cosine to 0
        "learning_rate": learning_rate,
        "meta_batch_size": meta_batch_size,  # inner problems side by side
        "estimator": "truncated",  # truncated, full, evolution, persistent or imitation
        "truncation": 20,  # steps per window
        "first_horizon": 0,  # steps that a curriculum starts with; 0 for no curriculum
        "objective": "log",  # what is minimised: log of the inner losses, or the loss itself
        "sigma": 0.01,  # standard deviation of evolution strategies
        # Bound, at each step, on the norm of what is passed back through the gradient that the rule
        # reads; 0 for the first-order gradient of the paper.
        "curvature": 0.0,
        "warmup": {},  # training phase that comes first; {} for none
        "remat": False,  # whether to recompute inner steps, which saves memory
        "largest": 1e6,  # loss above which a problem has diverged; its window is ignored
        "clip": 1.0,  # bound on the norm of the meta-gradient
        "steps_per_call": 1,  # meta-steps per call of the program
        "log_every": meta_steps // 20,  # meta-steps between two lines of metrics
        # meta-steps between two checkpoints, each of which is scored
        "validate_every": meta_steps // 20,
    } | more


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "learned_optimizers"  # name of the table in results.json
    config.learner = ""  # one of `learners`; if empty, all of them
    config.learners = (*RULES, *HAND_MADE)  # rows of the table
    config.problem = ""  # one of `problems`, with its transfers; if empty, all of them
    # what is minimised, each with its own section
    config.problems = ("quadratic", "released", "mnist")
    config.seed = 0  # seed of the validation and test problems
    config.seeds = 5  # number of meta-training seeds
    config.parallel = "jit"  # how devices share a step: jit or pmap
    config.preset = "default"  # named overrides: tiny
    # For tests: everything runs, but nothing is learned.
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
            "hidden": 20,  # units per layer
            "layers": 2,  # layers of the network
            "p": 10.0,  # range of the gradient's logarithm: below exp(-p) it counts as nearly 0
            "scale": 0.1,  # scale of the update
        },
        "rnn": {"hidden": 20, "layers": 2, "p": 10.0, "scale": 0.1},
        "hyper": {
            "hidden": 32,  # units of the recurrent network
            "inner": 4,  # units of the network it generates
            "scale": 0.01,  # scale of the update
        },
        "mlp": {
            "hidden": 8,  # units of the network
            "scale": 0.01,  # scale of the update
        },
    }
    config.least = 1e-12  # lower bound to which losses are clipped
    config.cap = 1e6  # upper bound to which losses are clipped, also the loss of a diverged run
    config.learning_rates = RATES  # learning rates that every hand-made optimizer is tuned over
    config.validation_problems = 64  # problems that checkpoints and learning rates are chosen on
    config.test_problems = 100  # test problems per cell

    config.quadratic = {
        "functions": "quadratic",  # what is minimised: quadratic or pictures
        "domain": "10-dim",  # name in the table
        "dim": 10,  # dimension of the quadratics
        "variant": "paper",  # variant of the quadratics: paper or released
        "horizon": 100,  # steps that an optimizer takes
        "chunk": 128,  # problems side by side when an optimizer is scored
        "train": {
            "lstm": training(4000, 3e-3, 128, steps_per_call=50),
            "rnn": training(4000, 3e-3, 128, steps_per_call=50),
            "hyper": training(4000, 3e-3, 128, steps_per_call=50),
            "mlp": training(4000, 3e-3, 128, steps_per_call=50),
        },
        # Settings that differ from training, in which the trained rules are scored too.
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
        "pictures": "mnist",  # data set: mnist or fashion_mnist
        "model": "perceptron",  # network: perceptron or convolutions
        "widths": (20,),  # widths of the hidden layers, or channels of each convolution
        "activation": "sigmoid",  # activation: sigmoid, relu or tanh
        "batch": 128,  # pictures per step
        "horizon": 100,
        "chunk": 1,  # problems side by side when scored; one at a time takes a third of the time
        "validation_problems": 20,
        "train": {
            # With first-order gradients and no warm-up, it is best after some 300 meta-steps and
            # then unlearns. With second-order gradients it keeps improving for thousands. The
            # teacher is the best hand-made optimizer, at its tuned rate. All seen on validation.
            "lstm": training(
                *(4000, 1e-3, 1),
                truncation=50,
                curvature=2.0,
                warmup=training(
                    *(800, 3e-3, 1),
                    estimator="imitation",
                    teacher="nesterov",  # hand-made optimizer whose updates are imitated
                    teacher_learning_rate=1.0,  # learning rate of the teacher
                    validate_every=200,
                ),
            ),
            "rnn": training(800, 3e-3, 1, validate_every=50),
            # With truncated back-propagation, and with a full unroll, both are best after some 100
            # meta-steps and then unlearn. This, and the rate, was seen on validation problems.
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
