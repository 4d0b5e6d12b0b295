"""Omniglot, 5-way and 20-way, 1-shot and 5-shot: the published protocols.

python -m experiments.tables.omniglot --config.way=5 --config.shot=1 --config.learner=maml

A cell of the full protocol takes 60,000 steps (Reptile 100,000 to 200,000) and needs an
accelerator. `--config.preset=cpu` is a reduced schedule of about an hour per cell on two cores; its
rows go into a separate table, `omniglot_reduced`. Without way, shot and learner, every cell is run.
Published for 5-way 1-shot: MAML 98.7, prototypical networks 98.8.
"""

from ml_collections import ConfigDict

from experiments.ranges import (
    at_least_0,
    integer,
    late,
    one_of,
    positive,
    several,
    share,
    switch,
    text,
)

LEARNERS = ("maml", "first-order", "anil", "reptile", "prototypical", "r2d2")
MORE_LEARNERS = ("maml++", "imaml", "meta-sgd", "proto-maml", "matching", "relation")

RANGES = {
    "table": text(),
    "way": late(integer(0)),
    "shot": late(integer(0)),
    "learner": one_of("", *LEARNERS, *MORE_LEARNERS),
    "ways": several(integer(1)),
    "shots": several(integer(1)),
    "learners": several(one_of(*LEARNERS, *MORE_LEARNERS), least=0),
    "more_learners": several(one_of(*LEARNERS, *MORE_LEARNERS), least=0),
    "seed": integer(0),
    "seeds": integer(1),
    "parallel": one_of("jit", "pmap"),
    "split": one_of("maml", "vinyals"),
    "statistics": one_of("transductive", "support", "one-query", "none"),
    "channels": integer(1),
    "convolution": one_of("patches", "xla"),
    "dtype": one_of("float32", "bfloat16"),
    "precision": one_of("default", "tensorfloat32", "float32"),
    "steps": integer(1),
    "meta_batch_size": integer(1),
    "tasks_per_chunk": integer(0),
    "learning_rate": positive(),
    "steps_per_call": integer(0),
    "seeds_at_once": integer(0),
    "processes": integer(1),
    "test_episodes": integer(1),
    "test_chunk": integer(0),
    "log_every": integer(1),
    "checkpoint_every": integer(1),
    "*.network": one_of("stride", "flat", "max"),
    "*.inner": one_of("sgd", "adam", "annealed"),
    "*.inner_learning_rate": positive(),
    "*.inner_steps": integer(1),
    "*.mode": one_of("unrolled", "remat", "mixed"),
    "*.test_steps": integer(1),
    "*.meta_batch_size": integer(1),
    "*.steps": integer(1),
    "*.batch": integer(1),
    "*.test_batch": integer(1),
    "*.keep_state": switch(),
    "*.outer_learning_rate": share(zero=False),
    "*.train_way": integer(1),
    "*.train_shots": integer(1),
    "*.queries": integer(1),
    "*.test_queries": integer(1),
    "*.test_episodes": integer(1),
    "*.temperature": positive(),
    "*.halve_every": integer(1),
    "*.last_learning_rate": at_least_0(),
    "*.penalty": positive(),
    "*.scale": positive(),
    "*.hidden": integer(1),
    "*.multi_step_until": share(),
    "*.second_order_from": share(),
    "*.strength": positive(),
    "*.cg_steps": integer(1),
    "*.damping": at_least_0(),
}
"""Valid values of the fields."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "omniglot"  # name of the table in results.json
    config.way = 0  # classes per episode; 0 for all of `ways`
    config.shot = 0  # examples per class; 0 for all of `shots`
    config.learner = ""  # one of `learners` or `more_learners`; if empty, all `learners`
    config.ways = (5, 20)  # numbers of ways in the table
    config.shots = (1, 5)  # numbers of shots in the table
    config.learners = LEARNERS  # rows of the table
    config.more_learners = MORE_LEARNERS  # rows of the table only if requested by name
    config.seed = 0  # seed of the split and of the test episodes
    config.seeds = 3  # number of training seeds, from 0
    config.parallel = "jit"  # how devices share a step: jit or pmap
    config.preset = "default"  # named overrides: cpu or tiny
    config.presets = {
        # A schedule that two CPU cores finish in an hour or less per cell.
        "cpu": {
            "table": "omniglot_reduced",
            "seeds": 1,
            "tasks_per_chunk": 1,
            "steps": 20_000,
            "reptile": {"way5": {"steps": 20_000}, "way20": {"steps": 20_000}},
            "prototypical": {"way5": {"steps": 2_000}, "way20": {"steps": 2_000}},
            "r2d2": {"way5": {"steps": 2_000}, "way20": {"steps": 2_000}},
            "matching": {"way5": {"steps": 2_000}, "way20": {"steps": 2_000}},
            "relation": {"way5": {"steps": 2_000}, "way20": {"steps": 2_000}},
            "maml++": {"way5": {"steps": 10_000}, "way20": {"steps": 10_000}},
        },
        # For tests: everything runs, but nothing is learned.
        "tiny": {
            "ways": (5,),
            "shots": (1,),
            "seeds": 1,
            "channels": 4,
            "steps": 2,
            "test_episodes": 4,
            "log_every": 1,
            "checkpoint_every": 2,
            "reptile": {"way5": {"steps": 2, "train_shots": 2, "test_steps": 2}},
            "maml++": {"way5": {"steps": 2, "inner_steps": 2}},
            "imaml": {"way5": {"steps": 2, "inner_steps": 4}},
            "prototypical": {"way5": {"steps": 2, "train_way": 6, "test_episodes": 4}},
            "r2d2": {"way5": {"steps": 2, "train_way": 6, "test_episodes": 4}},
            "matching": {"way5": {"steps": 2, "train_way": 6, "test_episodes": 4}},
            "relation": {"way5": {"steps": 2, "train_way": 6, "test_episodes": 4}},
        },
    }

    # Split of the characters. "maml": 1,100 / 100 / 423 at random, with a quarter turn drawn for
    # each class of an episode, also at test. "vinyals": the fixed split, where the four turns of a
    # character are separate classes.
    config.split = "maml"
    # Statistics that batch norm uses on queries in training; see metaguide.problems. Each method is
    # scored with transductive statistics (`accuracy`) and without (`accuracy_inductive`). "none" is
    # a network without batch norm.
    config.statistics = "transductive"
    config.channels = 64  # channels of each convolution
    config.convolution = "patches"  # how convolutions are computed: patches or xla
    # dtype of the computation: float32 or bfloat16; parameters are float32
    config.dtype = "float32"
    # Precision of float32 products: tensorfloat32, float32, or "default", which is JAX's default,
    # tensorfloat32 on a GPU.
    config.precision = "default"
    config.steps = 60_000  # training steps, unless the learner sets its own
    config.meta_batch_size = 32  # episodes per step, unless the learner sets its own
    config.tasks_per_chunk = 0  # tasks that a device maps over at once; 0 for all
    config.learning_rate = 1e-3  # learning rate of the outer Adam
    config.steps_per_call = 0  # steps per call of the program; 0: 1 on a CPU, else 50 or a divisor
    config.seeds_at_once = 0  # seeds per program; 0: 1 on a CPU, else all seeds of a cell
    config.processes = 1  # cells to run side by side on one device, one process each
    config.test_episodes = 600  # test episodes per cell
    config.test_chunk = 0  # test episodes side by side; 0: 8 on a CPU, else 50
    config.log_every = 100  # steps between two lines of metrics
    config.checkpoint_every = 1000  # steps between two checkpoints

    # The inner loss is the mean over the support's examples, while MAML's code sums and divides by
    # the shots: its α = .4 and .1 are both N α = 2 here. In MAML's code the inner loop keeps batch
    # norm fixed and without a scale, and the head is drawn at random. Here all parameters adapt,
    # and the head starts at 0.
    maml = {
        "inner_learning_rate": 2.0,  # learning rate of the inner loop
        "network": "stride",  # how Conv4 shrinks pictures: stride, flat or max
        "mode": "mixed",  # how the inner loop is differentiated: unrolled, remat or mixed
    }
    config.maml = {
        "way5": {
            **maml,
            "inner_steps": 1,  # inner steps in training
            "test_steps": 3,  # inner steps at test
            "meta_batch_size": 32,  # episodes per step
        },
        "way20": {**maml, "inner_steps": 5, "test_steps": 5, "meta_batch_size": 16},
    }
    config["first-order"] = {
        "way5": {**maml, "inner_steps": 1, "test_steps": 3, "meta_batch_size": 32},
        "way20": {**maml, "inner_steps": 5, "test_steps": 5, "meta_batch_size": 16},
    }
    config.anil = {
        "way5": {**maml, "inner_steps": 1, "test_steps": 3, "meta_batch_size": 32},
        "way20": {**maml, "inner_steps": 5, "test_steps": 5, "meta_batch_size": 16},
    }
    # One query per class. Batch norm uses the statistics of all queries or, for inductive scores,
    # of the support and one query.
    reptile = {
        "network": "flat",
        "inner": "adam",  # the inner rule: sgd, adam or annealed
        "keep_state": True,  # whether the inner rule's state carries over from task to task
        "outer_learning_rate": 1.0,  # initial share of the way to the adapted parameters
        "train_shots": 10,  # examples per class in training
        "test_steps": 50,  # inner steps at test
        "meta_batch_size": 5,  # episodes per step
        "queries": 1,  # queries per class in training
        "test_queries": 1,  # queries per class at test
    }
    config.reptile = {
        "way5": {
            **reptile,
            "inner_learning_rate": 1e-3,
            "inner_steps": 5,
            "batch": 10,  # examples per inner step in training
            "test_batch": 5,  # examples per inner step at test
            "steps": 100_000,  # training steps
        },
        "way20": {
            **reptile,
            "inner_learning_rate": 5e-4,
            "inner_steps": 10,
            "batch": 20,  # examples per inner step in training
            "test_batch": 10,  # examples per inner step at test
            "steps": 200_000,
        },
    }
    prototypical = {
        "network": "max",
        "temperature": 1.0,  # divisor of distances or similarities
        "train_way": 60,  # classes per episode in training
        "queries": 5,  # queries per class in training
        "test_queries": 5,  # queries per class at test
        "test_episodes": 1000,  # test episodes per cell
        "meta_batch_size": 1,  # episodes per step
        "halve_every": 2_000,  # steps after which the outer learning rate is halved
        "steps": 20_000,  # training steps
    }
    config.prototypical = {"way5": dict(prototypical), "way20": dict(prototypical)}
    r2d2 = {k: v for k, v in prototypical.items() if k != "temperature"}
    r2d2 |= {
        "penalty": 1.0,  # initial λ of the ridge regression
        "scale": 1.0,  # initial scale of its outputs
    }
    config.r2d2 = {"way5": dict(r2d2), "way20": dict(r2d2)}

    # 100 epochs of 500 steps, the first tenth with the multi-step loss.
    plus_plus = {
        "network": "stride",
        "inner_learning_rate": 0.1,
        "inner_steps": 5,  # inner steps
        "meta_batch_size": 8,
        "multi_step_until": 0.1,  # share of training during which the loss of every step counts
        "second_order_from": 0.5,  # share of training after which the gradient is exact
        "mode": "mixed",
        "last_learning_rate": 1e-5,  # final outer learning rate
        "steps": 50_000,
    }
    config["maml++"] = {"way5": dict(plus_plus), "way20": dict(plus_plus)}
    implicit = {
        "network": "stride",
        "inner": "sgd",
        "inner_learning_rate": 0.1,
        "strength": 2.0,  # λ of the pull towards the meta-parameters
        "cg_steps": 5,  # steps of conjugate gradients
        "damping": 1.0,  # damping of conjugate gradients
        "meta_batch_size": 32,
        "steps": 20_000,
    }
    config.imaml = {
        "way5": {**implicit, "inner_steps": 16},
        "way20": {**implicit, "inner_steps": 25},
    }
    # No protocol for these is published for this split and network. The first two use MAML's, the
    # last two that of prototypical networks.
    config["meta-sgd"] = {
        "way5": {**maml, "inner_steps": 1, "meta_batch_size": 32},
        "way20": {**maml, "inner_steps": 1, "meta_batch_size": 16},
    }
    proto = {**maml, "inner_learning_rate": 0.1, "inner_steps": 5}
    config["proto-maml"] = {
        "way5": {**proto, "meta_batch_size": 32},
        "way20": {**proto, "meta_batch_size": 16},
    }
    matching = {**prototypical, "temperature": 0.1}
    config.matching = {"way5": dict(matching), "way20": dict(matching)}
    relation = {k: v for k, v in prototypical.items() if k != "temperature"} | {
        "hidden": 64,  # hidden units of the comparison network
    }
    config.relation = {"way5": dict(relation), "way20": dict(relation)}
    return config
