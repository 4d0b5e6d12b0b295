"""The guide on the embedded bazaar: the default of every experiment module.

python -m experiments.guide                          2 CPU cores, 3 seeds, 50 episodes a cell
python -m experiments.guide --config.seeds=1         a first look, in a third of the time or more
python -m experiments.guide --config.preset=full     3 seeds, 600 episodes a cell
python -m experiments.guide --config.preset=optimizers --workdir=runs/guide_optimizers
                                                     learned optimizers beside tuned SGD and Adam
"""

from ml_collections import ConfigDict

SGD_RATES = (0.03, 0.1, 0.3)
ADAM_RATES = (1e-3, 3e-3, 1e-2)
RULE_FACTORS = (1.0, 3.0, 10.0)
PENALTIES = (0.3, 3.0, 30.0)
SOURCES = ("clothing", "computers", "cosmetics", "furniture", "groceries", "phones", "sports")
ADAPTED = ("classification", "sentiment", "questions")
CLASSES = ("classification", "sentiment")
ALL = ("classification", "sentiment", "questions", "recommendation")


def get_config() -> ConfigDict:
    """Return the config; its fields are commented where their name does not say all."""
    config = ConfigDict()
    config.table = "bazaar"
    config.seed = 0
    config.seeds = 3
    config.init_from = ""  # the work folder of the stage before, for a stage run alone
    config.log_every = 10
    config.checkpoint_every = 200
    config.preset = "default"
    config.presets = {
        "full": {
            "adapt": {"episodes": 600},
            "pretrain": {"steps": 2000},
            "multitask": {"steps": 3000},
            "metatrain": {
                "steps": 1000,
                "learners": ("maml", "first-order", "anil", "prototypical"),
            },
        },
        # Learned optimizers beside tuned SGD and Adam, all with as many steps.
        "optimizers": {
            "table": "bazaar_optimizers",
            "seeds": 1,
            "metatrain": {
                "steps": 60,
                "learners": ("maml", "rnn", "lstm", "hyper", "lstm-head", "maml+lstm"),
            },
            "adapt": {
                "arms": {
                    "fine-tuning-adam": ADAPTED,
                    "head-only-adam": ALL,
                    "scratch": (),
                    "ridge": (),
                    "logistic": (),
                },
            },
        },
        # For tests and notebooks: every stage runs, nothing is learned.
        "tiny": {
            "seeds": 1,
            "data": {"categories": 6, "users": 20, "reviews": 60, "questions": 40},
            "model": {"width": 16, "layers": 1, "channels": (4, 8, 8)},
            "text": {"vocabulary": 1000, "pair": 112},
            "pretrain": {"steps": 4, "batch": 8},
            "multitask": {"steps": 4, "tasks": 2},
            "metatrain": {"steps": 2, "tasks": 1, "inner_steps": 1},
            "adapt": {"episodes": 4, "steps": 2, "validation_episodes": 2},
            "episodes": {"queries": 6},
        },
    }

    config.data = {
        "world": "bazaar",  # bazaar, catalogue or online_shopping
        "folder": "",  # of a catalogue, where world is catalogue
        "sources": (),  # all domains that are not named below
        "held_out": ("home_appliances", "toys"),
        "validation": ("books",),
        # The bazaar's knobs; see metaguide.data.bazaar.
        "seed": 0,
        "categories": 8,
        "reviews": 240,
        "questions": 160,
        "users": 120,
        "shared": 0.7,
        "chinese": 0.25,
    }
    # Tokens kept of each text; the tokenizer is trained on source domains only.
    config.text = {"vocabulary": 2000, "text": 28, "pair": 72, "name": 8}
    config.model = {
        "width": 48,
        "layers": 2,
        "heads": 4,
        "dropout": 0.1,
        "channels": (16, 32, 64),
        "image": True,
        "way": 10,  # slots of the classification head: the most classes it can tell apart
    }
    config.episodes = {
        "way": 5,
        "shots": 10,  # the largest number; supports of fewer shots are its prefixes
        "queries": 15,
        "candidates": 32,  # products that a training episode of recommendation ranks
        "longest": 8,  # tokens of an answer
        "near": 1.0,  # texts with so much in common are one example; 1 for the same texts alone
    }

    config.pretrain = {
        "steps": 300,
        "batch": 64,
        "rate": 4e-3,
        "weight_decay": 0.01,
        # λ of each objective; 0 leaves it out.
        "weights": {
            "masked_language": 1.0,
            "denoising": 1.0,
            "image_text": 0.2,
            "text_text": 0.0,
        },
        "mask_rate": 0.15,
        "mask_variant": "mask",  # or 80-10-10
        "noise": 0.1,
        "occlusion": 10,
    }
    config.multitask = {
        "steps": 300,
        "tasks": 4,  # episodes of each kind a step, each of a domain drawn evenly
        "rate": 3e-3,
        "weight_decay": 0.01,
        "weighting": "fixed",  # or uncertainty
        "weights": {kind: 1.0 for kind in ALL},
        "shots": (1, 5),
    }
    config.metatrain = {
        "learner": "maml",  # which one `experiments.metatrain` trains
        # Which ones the guide trains; the preset full has first-order MAML too.
        "learners": ("maml", "anil", "prototypical"),
        "steps": 40,
        "tasks": 2,
        "tasks_per_chunk": 1,  # that a device maps over at once; 0 for all of them
        "rate": 3e-4,
        # Of a learned optimizer, and where it starts: "" for the trained one of its kind that comes
        # with the package, or a file or work folder with another.
        "rule_rate": 1e-2,
        "rule_from": {"rnn": "", "lstm": "", "hyper": ""},
        # Where it is learned: of the sources its start, which is held, knows all there is to know,
        # and the best update there is none; the others tune their rates on validation too.
        "rule_learned_on": "validation",  # or sources
        "inner_rate": 0.1,
        "inner_steps": 3,
        "remat": False,
        "weights": {kind: 1.0 for kind in ALL},
        "domain_weights": dict.fromkeys(SOURCES, 1.0),
        "shots": (1, 5),
    }
    config.adapt = {
        "shots": (0, 1, 5, 10),
        "episodes": 50,
        "steps": 3,
        # Episodes side by side in a program. One is fastest on a CPU, which runs a program a core;
        # recommendation encodes the catalogue once a program. On a GPU, all of them.
        "chunk": {"classification": 1, "sentiment": 1, "questions": 1, "recommendation": 25},
        # Tuned for each arm and kind of task on the validation domains, with as many values each.
        "validation_episodes": 10,
        "rates": SGD_RATES,
        "adam_rates": ADAM_RATES,
        # Of a learned optimizer's updates: it serves all kinds of task, and makes steps as small as
        # the one that bears least.
        "rule_factors": RULE_FACTORS,
        "penalties": PENALTIES,
        # Which arm serves which kind of task.
        "arms": {
            "scratch": ADAPTED,
            "zero-shot": ALL,
            "fine-tuning": ADAPTED,
            "fine-tuning-adam": (),
            "head-only": ALL,
            "head-only-adam": (),
            "ridge": CLASSES,
            "logistic": CLASSES,
            "maml": ADAPTED,
            "first-order": ADAPTED,
            "anil": ALL,
            "prototypical": CLASSES,
            "rnn": ADAPTED,
            "lstm": ADAPTED,
            "hyper": ADAPTED,
            "lstm-head": ALL,
            "maml+lstm": ADAPTED,
        },
    }
    return config
