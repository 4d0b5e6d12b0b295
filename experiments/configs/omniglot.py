"""Omniglot, 5-way and 20-way, 1-shot and 5-shot: the published protocols.

python -m experiments.tables.omniglot --config.way=5 --config.shot=1 --config.learner=maml

A cell of the full protocol is 60,000 steps (Reptile 100,000 to 200,000) and needs an accelerator;
`--config.preset=cpu` is a reduced schedule of about an hour a cell on two cores, whose rows go into
a table of their own, `omniglot_reduced`. Without way, shot and learner it is every cell.
Expected, 5-way 1-shot: MAML 98.7, prototypical networks 98.8 in print.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config."""
    config = ConfigDict()
    config.table = "omniglot"
    config.way = 0  # 0 for all of `ways`
    config.shot = 0  # 0 for all of `shots`
    config.learner = ""  # one of `learners` or `more_learners`; all `learners` where it is empty
    config.ways = (5, 20)
    config.shots = (1, 5)
    config.learners = ("maml", "first-order", "anil", "reptile", "prototypical", "ridge")
    config.more_learners = ("maml++", "imaml", "meta-sgd", "proto-maml", "matching", "relation")
    config.seed = 0
    config.seeds = 3
    config.parallel = "jit"  # or pmap
    config.preset = "default"
    config.presets = {
        # What two CPU cores reach in an hour or less a cell.
        "cpu": {
            "table": "omniglot_reduced",
            "seeds": 1,
            "tasks_per_chunk": 1,
            "steps": 20_000,
            "reptile": {"way5": {"steps": 20_000}, "way20": {"steps": 20_000}},
            "prototypical": {"way5": {"steps": 2_000}, "way20": {"steps": 2_000}},
            "ridge": {"way5": {"steps": 2_000}, "way20": {"steps": 2_000}},
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
            "maml++": {"way5": {"steps": 2}},
            "imaml": {"way5": {"steps": 2}},
            "prototypical": {"way5": {"steps": 2, "train_way": 6, "test_episodes": 4}},
            "ridge": {"way5": {"steps": 2, "train_way": 6, "test_episodes": 4}},
            "matching": {"way5": {"steps": 2, "train_way": 6, "test_episodes": 4}},
            "relation": {"way5": {"steps": 2, "train_way": 6, "test_episodes": 4}},
        },
    }

    # "maml": 1,100 / 100 / 423 characters at random, a quarter turn drawn for each class of an
    # episode, also at test. "vinyals": the fixed split, each character's four turns being classes.
    config.split = "maml"
    # Whose mean and variance batch norm takes on queries in training; see metaguide.problems. Each
    # arm is judged by transductive statistics (`accuracy`) and without (`accuracy_inductive`).
    # "none" is a network without batch norm.
    config.statistics = "transductive"
    config.channels = 64
    config.convolution = "patches"  # or xla
    config.dtype = "float32"  # of the computation, or bfloat16; parameters are float32
    # Of products in float32: "default" is JAX's, on a GPU tensorfloat32; or name that, or float32.
    config.precision = "default"
    config.steps = 60_000  # where a learner has none of its own
    config.tasks = 32  # a step, where a learner has none of its own
    config.tasks_per_chunk = 0  # that a device maps over at once; 0 for all of them
    config.rate = 1e-3  # of the outer Adam
    config.span = 0  # steps a call of the program; 0: 1 on a CPU, elsewhere 50 or a divisor of it
    config.seeds_at_once = 0  # in one program; 0: 1 on a CPU, elsewhere all seeds of a cell
    config.processes = 1  # cells side by side on one device, a process each
    config.test_episodes = 600
    config.test_chunk = 0  # episodes side by side; 0: 8 on a CPU, elsewhere 50
    config.log_every = 100
    config.checkpoint_every = 1000

    # The mean over the support's examples is minimised where MAML's code sums and divides by the
    # shots: its α = .4 and .1 are both N α = 2 here. Apart from the code, whose inner loop holds
    # batch norm, has no scale in it and draws the head, all parameters adapt and the head starts
    # at 0.
    maml = {"inner_rate": 2.0, "network": "stride", "mode": "mixed"}
    config.maml = {
        "way5": {**maml, "inner_steps": 1, "test_steps": 3, "tasks": 32},
        "way20": {**maml, "inner_steps": 5, "test_steps": 5, "tasks": 16},
    }
    config["first-order"] = {
        "way5": {**maml, "inner_steps": 1, "test_steps": 3, "tasks": 32},
        "way20": {**maml, "inner_steps": 5, "test_steps": 5, "tasks": 16},
    }
    config.anil = {
        "way5": {**maml, "inner_steps": 1, "test_steps": 3, "tasks": 32},
        "way20": {**maml, "inner_steps": 5, "test_steps": 5, "tasks": 16},
    }
    # One query a class; batch norm takes the statistics of all queries, or (inductive) of the
    # support and one query.
    reptile = {
        "network": "flat",
        "inner": "adam",
        "keep_state": True,
        "outer_rate": 1.0,
        "train_shots": 10,
        "test_steps": 50,
        "tasks": 5,
        "queries": 1,
        "test_queries": 1,
    }
    config.reptile = {
        "way5": {
            **reptile,
            "inner_rate": 1e-3,
            "inner_steps": 5,
            "batch": 10,
            "test_batch": 5,
            "steps": 100_000,
        },
        "way20": {
            **reptile,
            "inner_rate": 5e-4,
            "inner_steps": 10,
            "batch": 20,
            "test_batch": 10,
            "steps": 200_000,
        },
    }
    prototypical = {
        "network": "max",
        "temperature": 1.0,
        "train_way": 60,
        "queries": 5,
        "test_queries": 5,
        "test_episodes": 1000,
        "tasks": 1,
        "halve_every": 2_000,
        "steps": 20_000,
    }
    config.prototypical = {"way5": dict(prototypical), "way20": dict(prototypical)}
    ridge = {k: v for k, v in prototypical.items() if k != "temperature"}
    ridge |= {"penalty": 1.0, "scale": 1.0}
    config.ridge = {"way5": dict(ridge), "way20": dict(ridge)}

    # 100 epochs of 500 steps, the first tenth with the multi-step loss.
    plus_plus = {
        "network": "stride",
        "inner_rate": 0.1,
        "inner_steps": 5,
        "tasks": 8,
        "multi_step_until": 0.1,
        "second_order_from": 0.5,
        "mode": "mixed",
        "last_rate": 1e-5,
        "steps": 50_000,
    }
    config["maml++"] = {"way5": dict(plus_plus), "way20": dict(plus_plus)}
    implicit = {
        "network": "stride",
        "inner": "sgd",
        "inner_rate": 0.1,
        "strength": 2.0,
        "cg_steps": 5,
        "damping": 1.0,
        "tasks": 32,
        "steps": 20_000,
    }
    config.imaml = {
        "way5": {**implicit, "inner_steps": 16},
        "way20": {**implicit, "inner_steps": 25},
    }
    # No protocol of these is in print for this split and network: MAML's, and prototypical's.
    config["meta-sgd"] = {
        "way5": {**maml, "inner_steps": 1, "tasks": 32},
        "way20": {**maml, "inner_steps": 1, "tasks": 16},
    }
    proto = {**maml, "inner_rate": 0.1, "inner_steps": 5}
    config["proto-maml"] = {"way5": {**proto, "tasks": 32}, "way20": {**proto, "tasks": 16}}
    matching = {**prototypical, "temperature": 0.1}
    config.matching = {"way5": dict(matching), "way20": dict(matching)}
    relation = {k: v for k, v in prototypical.items() if k != "temperature"} | {"hidden": 64}
    config.relation = {"way5": dict(relation), "way20": dict(relation)}
    return config
