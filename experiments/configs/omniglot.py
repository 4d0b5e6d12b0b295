"""Omniglot, 5-way and 20-way, 1-shot and 5-shot: the published protocols.

python -m experiments.tables.omniglot --config.way=5 --config.shot=1 --config.learner=maml

A cell of the full protocol is 60,000 steps (Reptile 100,000 to 200,000) and needs an accelerator;
`--config.preset=cpu` is a reduced schedule of about an hour a cell on two cores, whose rows go into
a table of their own, `omniglot_reduced`. Without way, shot and learner it is every cell.
Expected, 5-way 1-shot: MAML 98.7, prototypical networks 98.8 in print.
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
"""What the fields may hold."""


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "omniglot"  # name of the table in results.json
    config.way = 0  # classes of an episode; 0 for all of `ways`
    config.shot = 0  # examples a class; 0 for all of `shots`
    config.learner = ""  # one of `learners` or `more_learners`; all `learners` where it is empty
    config.ways = (5, 20)  # of the table
    config.shots = (1, 5)  # of the table
    config.learners = LEARNERS  # rows of the table
    config.more_learners = MORE_LEARNERS  # rows of the table where they were asked for by name
    config.seed = 0  # of the split and of the test episodes
    config.seeds = 3  # of training: the first so many
    config.parallel = "jit"  # or pmap: how devices share a step
    config.preset = "default"  # overrides by name: cpu or tiny
    config.presets = {
        # What two CPU cores reach in an hour or less a cell.
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
        # For tests: everything runs, nothing is learned.
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

    # Which characters are for what. "maml": 1,100 / 100 / 423 at random, a quarter turn drawn for
    # each class of an episode, also at test. "vinyals": the fixed split, each character's four
    # turns being classes.
    config.split = "maml"
    # Whose mean and variance batch norm takes on queries in training; see metaguide.problems. Each
    # method is scored by transductive statistics (`accuracy`) and without (`accuracy_inductive`).
    # "none" is a network without batch norm.
    config.statistics = "transductive"
    config.channels = 64  # of each convolution
    config.convolution = "patches"  # how it is computed: patches or xla
    config.dtype = "float32"  # of the computation, or bfloat16; parameters are float32
    # Of products in float32: "default" is JAX's, on a GPU tensorfloat32; or name that, or float32.
    config.precision = "default"
    config.steps = 60_000  # of training, where a learner has none of its own
    config.meta_batch_size = 32  # episodes a step, where a learner has none of its own
    config.tasks_per_chunk = 0  # that a device maps over at once; 0 for all of them
    config.learning_rate = 1e-3  # of the outer Adam
    config.steps_per_call = 0  # 0: 1 on a CPU, elsewhere 50 or a divisor of it
    config.seeds_at_once = 0  # in one program; 0: 1 on a CPU, elsewhere all seeds of a cell
    config.processes = 1  # cells side by side on one device, a process each
    config.test_episodes = 600  # of a cell
    config.test_chunk = 0  # episodes side by side; 0: 8 on a CPU, elsewhere 50
    config.log_every = 100  # steps between two lines of metrics
    config.checkpoint_every = 1000  # steps between two checkpoints

    # The mean over the support's examples is minimised where MAML's code sums and divides by the
    # shots: its α = .4 and .1 are both N α = 2 here. Apart from the code, whose inner loop holds
    # batch norm, has no scale in it and draws the head, all parameters adapt and the head starts
    # at 0.
    maml = {
        "inner_learning_rate": 2.0,  # of the inner loop
        "network": "stride",  # how Conv4 shrinks pictures: stride, flat or max
        "mode": "mixed",  # how the inner loop is differentiated: unrolled, remat or mixed
    }
    config.maml = {
        "way5": {
            **maml,
            "inner_steps": 1,  # of the inner loop in training
            "test_steps": 3,  # inner steps at test
            "meta_batch_size": 32,  # episodes a step
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
    # One query a class; batch norm takes the statistics of all queries, or (inductive) of the
    # support and one query.
    reptile = {
        "network": "flat",
        "inner": "adam",  # the inner rule: sgd, adam or annealed
        "keep_state": True,  # whether the inner rule's state goes on from task to task
        "outer_learning_rate": 1.0,  # share of the way to the adapted parameters, at first
        "train_shots": 10,  # examples a class in training
        "test_steps": 50,  # inner steps at test
        "meta_batch_size": 5,  # episodes a step
        "queries": 1,  # of a class in training
        "test_queries": 1,  # of a class at test
    }
    config.reptile = {
        "way5": {
            **reptile,
            "inner_learning_rate": 1e-3,
            "inner_steps": 5,
            "batch": 10,  # examples of an inner step in training
            "test_batch": 5,  # examples of an inner step at test
            "steps": 100_000,  # of training
        },
        "way20": {
            **reptile,
            "inner_learning_rate": 5e-4,
            "inner_steps": 10,
            "batch": 20,  # examples of an inner step in training
            "test_batch": 10,  # examples of an inner step at test
            "steps": 200_000,
        },
    }
    prototypical = {
        "network": "max",
        "temperature": 1.0,  # what distances or similarities are divided by
        "train_way": 60,  # classes of an episode in training
        "queries": 5,  # of a class in training
        "test_queries": 5,  # of a class at test
        "test_episodes": 1000,  # of a cell
        "meta_batch_size": 1,  # episodes a step
        "halve_every": 2_000,  # steps after which the outer rate is halved
        "steps": 20_000,  # of training
    }
    config.prototypical = {"way5": dict(prototypical), "way20": dict(prototypical)}
    r2d2 = {k: v for k, v in prototypical.items() if k != "temperature"}
    r2d2 |= {
        "penalty": 1.0,  # λ of the ridge regression, as it starts
        "scale": 1.0,  # of its answers, as it starts
    }
    config.r2d2 = {"way5": dict(r2d2), "way20": dict(r2d2)}

    # 100 epochs of 500 steps, the first tenth with the multi-step loss.
    plus_plus = {
        "network": "stride",
        "inner_learning_rate": 0.1,
        "inner_steps": 5,  # of the inner loop
        "meta_batch_size": 8,
        "multi_step_until": 0.1,  # share of training in which the loss of every step counts
        "second_order_from": 0.5,  # share of training after which the gradient is exact
        "mode": "mixed",
        "last_learning_rate": 1e-5,  # what the outer rate falls to
        "steps": 50_000,
    }
    config["maml++"] = {"way5": dict(plus_plus), "way20": dict(plus_plus)}
    implicit = {
        "network": "stride",
        "inner": "sgd",
        "inner_learning_rate": 0.1,
        "strength": 2.0,  # λ of the pull to the meta-parameters
        "cg_steps": 5,  # of conjugate gradients
        "damping": 1.0,  # of conjugate gradients
        "meta_batch_size": 32,
        "steps": 20_000,
    }
    config.imaml = {
        "way5": {**implicit, "inner_steps": 16},
        "way20": {**implicit, "inner_steps": 25},
    }
    # No protocol of these is in print for this split and network: MAML's, and prototypical's.
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
        "hidden": 64,  # units of the network that compares
    }
    config.relation = {"way5": dict(relation), "way20": dict(relation)}
    return config
