"""The guide on the embedded bazaar: the default of every experiment module.

python -m experiments.guide                          2 CPU cores, 3 seeds, 50 episodes a cell
python -m experiments.guide --config.seeds=1         a first look, in a third of the time or more
python -m experiments.guide --config.preset=full     3 seeds, 600 episodes a cell
python -m experiments.guide --config.preset=optimizers --workdir=runs/guide_optimizers
                                                     learned optimizers beside tuned SGD and Adam
"""

from ml_collections import ConfigDict

from experiments import sources
from experiments.compilation import KINDS
from experiments.ranges import (
    Range,
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

SGD_RATES = (0.03, 0.1, 0.3)
ADAM_RATES = (1e-3, 3e-3, 1e-2)
RULE_FACTORS = (1.0, 3.0, 10.0)
PENALTIES = (0.3, 3.0, 30.0)
SOURCES = ("clothing", "computers", "cosmetics", "furniture", "groceries", "phones", "sports")
ADAPTED = ("classification", "sentiment", "questions")
CLASSES = ("classification", "sentiment")
ALL = (*ADAPTED, "recommendation")
"""The tasks that a guide is trained on; a new one goes into `ADAPTED`."""


METHODS = (
    *("scratch", "zero-shot", "fine-tuning", "fine-tuning-adam", "head-only", "head-only-adam"),
    *("ridge", "logistic"),
    *("maml", "first-order", "anil", "prototypical"),
    *("rnn", "lstm", "hyper", "lstm-head", "maml+lstm"),
)
LEARNERS = METHODS[8:]
"""The methods that are meta-trained."""

_TASKS = one_of(*ALL)
_NO_METHOD = Range(f"the name of a method, {', '.join(METHODS)}", lambda value: False, late=True)

RANGES = {
    "table": text(),
    "seed": integer(0),
    "seeds": integer(1),
    "init_from": text(),
    "log_every": integer(1),
    "checkpoint_every": integer(1),
    "compilation": one_of(*KINDS),
    "data.world": one_of(*sources.FIELDS),
    "data.sources": several(text(), least=0),
    "data.held_out": several(text()),
    "data.validation": several(text()),
    **{f"data.{name}": optional(one) for of in sources.FIELDS.values() for name, one in of.items()},
    "text.vocabulary": integer(263),  # 261 are reserved
    "text.text": integer(2),
    "text.pair": integer(4),
    "text.name": integer(2),
    "text.buckets": integer(0),
    "model.width": integer(1),
    "model.layers": integer(1),
    "model.heads": integer(1),
    "model.dropout": share(one=False),
    "model.channels": several(integer(1), most=5),  # 32 pixels halve five times
    "model.image": switch(),
    "model.way": integer(1),
    "episodes.way": integer(1),
    "episodes.shots": integer(1),
    "episodes.queries": integer(1),
    "episodes.candidates": integer(2),
    "episodes.max_answer_tokens": integer(1),
    "episodes.near": share(zero=False),
    "pretrain.steps": integer(1),
    "pretrain.batch": integer(1),
    "pretrain.learning_rate": positive(),
    "pretrain.weight_decay": at_least_0(),
    "pretrain.weights.masked_language": at_least_0(),
    "pretrain.weights.denoising": at_least_0(),
    "pretrain.weights.image_text": at_least_0(),
    "pretrain.weights.text_text": at_least_0(),
    "pretrain.mask_rate": share(zero=False),
    "pretrain.mask_variant": one_of("mask", "80-10-10"),
    "pretrain.noise": at_least_0(),
    "pretrain.occlusion": integer(0, 32),
    "multitask.steps": integer(1),
    "multitask.meta_batch_size": integer(1),
    "multitask.learning_rate": positive(),
    "multitask.weight_decay": at_least_0(),
    "multitask.weighting": one_of("fixed", "uncertainty"),
    **{f"multitask.weights.{task}": at_least_0() for task in ALL},
    "multitask.shots": several(integer(0)),
    "metatrain.learner": one_of(*LEARNERS),
    "metatrain.learners": several(one_of(*LEARNERS), least=0),
    "metatrain.steps": integer(1),
    "metatrain.meta_batch_size": integer(1),
    "metatrain.tasks_per_chunk": integer(0),
    "metatrain.learning_rate": positive(),
    "metatrain.rule_learning_rate": positive(),
    "metatrain.rule_from.*": text(),
    "metatrain.rule_learned_on": one_of("validation", "sources"),
    "metatrain.inner_learning_rate": positive(),
    "metatrain.inner_steps": integer(1),
    "metatrain.remat": switch(),
    **{f"metatrain.weights.{task}": at_least_0() for task in ALL},
    "metatrain.domain_weights.*": at_least_0(),
    "metatrain.shots": several(integer(0)),
    "adapt.shots": several(integer(0)),
    "adapt.episodes": integer(1),
    "adapt.steps": integer(1),
    **{f"adapt.chunk.{task}": integer(1) for task in ALL},
    "adapt.validation_episodes": integer(1),
    "adapt.learning_rates": several(positive()),
    "adapt.adam_learning_rates": several(positive()),
    "adapt.rule_factors": several(positive()),
    "adapt.penalties": several(positive()),
    **{f"adapt.methods.{method}": optional(several(_TASKS, least=0)) for method in METHODS},
    "adapt.methods.*": _NO_METHOD,
}
"""What the fields may hold of every config that is read by a module of the guide."""

RELATIONS = (
    multiple("model.width", "model.heads"),
    at_most("episodes.way", "model.way"),
    at_most("adapt.shots", "episodes.shots"),  # a support has no more, whatever a row would say
    late(multiple("metatrain.meta_batch_size", "metatrain.tasks_per_chunk")),
)


def get_config() -> ConfigDict:
    """Return the config; `--help` shows the comment on each field."""
    config = ConfigDict()
    config.table = "bazaar"  # name of the table in results.json
    config.seed = 0  # of training and of the test episodes; the first one where there are several
    config.seeds = 3  # how many guides are trained, each from a seed of its own
    config.init_from = ""  # the work folder of the stage before, for a stage run alone
    config.log_every = 10  # steps between two lines of metrics
    config.checkpoint_every = 200  # steps between two checkpoints
    config.compilation = "optimised"  # or fast: compiled in a third of the time, for short runs
    config.preset = "default"  # overrides by name: full, optimizers or tiny
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
                "methods": {
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
            "compilation": "fast",
            "data": {"categories": 6, "users": 20, "reviews": 60, "questions": 40},
            "model": {"width": 16, "layers": 1, "channels": (4, 8, 8)},
            "text": {"vocabulary": 1000, "pair": 112},
            "pretrain": {"steps": 4, "batch": 8},
            "multitask": {"steps": 4, "meta_batch_size": 2},
            "metatrain": {"steps": 2, "meta_batch_size": 1, "inner_steps": 1},
            "adapt": {"episodes": 4, "steps": 2, "validation_episodes": 2},
            "episodes": {"queries": 6},
        },
    }

    config.data = {
        "world": "bazaar",  # bazaar, catalogue or online_shopping
        "folder": "",  # of a catalogue, where world is catalogue
        "sources": (),  # domains to train on; all that are not named below where it is empty
        "held_out": ("home_appliances", "toys"),  # domains that no stage sees, for the test
        "validation": ("books",),  # domains that rates and penalties are tuned on
        # The bazaar's knobs; see metaguide.data.bazaar.
        "seed": 0,  # of the generated world
        "categories": 8,  # of a domain, 1 to 8
        "reviews": 240,  # of a domain
        "questions": 160,  # of a domain
        "users": 120,  # of a domain
        "shared": 0.7,  # what domains have in common, 0 to 1
        "chinese": 0.25,  # share of the products that are in Chinese
    }
    config.text = {
        "vocabulary": 2000,  # ids of the tokenizer, which is trained on source domains only
        "text": 28,  # tokens kept of a product or a review
        "pair": 72,  # tokens kept of a question with its passage
        "name": 8,  # tokens kept of the name of a class
        "buckets": 2**15,  # of the hashed n-grams that the encoder reads beside tokens; 0 for none
    }
    config.model = {
        "width": 48,  # of the encoder, a multiple of heads
        "layers": 2,  # of the encoder
        "heads": 4,  # of attention
        "dropout": 0.1,  # in pre-training
        "channels": (16, 32, 64),  # of the convolutions on pictures, each of which halves the side
        "image": True,  # whether pictures are read
        "way": 10,  # slots of the classification head: the most classes it can tell apart
    }
    config.episodes = {
        "way": 5,  # classes of an episode
        "shots": 10,  # the largest number; supports of fewer shots are its prefixes
        "queries": 15,  # examples of an episode that are asked about
        "candidates": 32,  # products that a training episode of recommendation ranks
        "max_answer_tokens": 8,  # of an answer
        "near": 1.0,  # texts with so much in common are one example; 1 for the same texts alone
    }

    config.pretrain = {
        "steps": 300,  # of pre-training
        "batch": 64,  # texts, pictures or pairs a step
        "learning_rate": 4e-3,  # of AdamW, its largest
        "weight_decay": 0.01,  # of AdamW
        # λ of each objective; 0 leaves it out.
        "weights": {
            "masked_language": 1.0,
            "denoising": 1.0,
            "image_text": 0.2,
            "text_text": 0.0,
        },
        "mask_rate": 0.15,  # share of the words that are hidden
        "mask_variant": "mask",  # what hides a word: mask, or 80-10-10
        "noise": 0.1,  # on pictures, its standard deviation in a range of 1
        "occlusion": 10,  # side of the square hole in a picture, pixels; 0 for none
    }
    config.multitask = {
        "steps": 300,  # of joint training
        "meta_batch_size": 4,  # episodes of each task a step, each of a domain drawn evenly
        "learning_rate": 3e-3,  # of AdamW, its largest
        "weight_decay": 0.01,  # of AdamW
        "weighting": "fixed",  # of the losses: fixed or uncertainty
        "weights": {task: 1.0 for task in ALL},  # λ of each task; 0 leaves it out
        "shots": (1, 5),  # of an episode, drawn evenly
    }
    config.metatrain = {
        "learner": "maml",  # which one `experiments.metatrain` trains
        # Which ones the guide trains; the preset full has first-order MAML too.
        "learners": ("maml", "anil", "prototypical"),
        "steps": 40,  # of meta-training
        "meta_batch_size": 2,  # episodes of each task a step
        "tasks_per_chunk": 1,  # that a device maps over at once; 0 for all of them
        "learning_rate": 3e-4,  # of the outer AdamW, its largest
        "rule_learning_rate": 1e-2,  # of AdamW on a learned optimizer
        # Where a learned optimizer starts: "" for the trained one of its kind that comes with the
        # package, or a file or work folder with another.
        "rule_from": {"rnn": "", "lstm": "", "hyper": ""},
        # Where a learned optimizer is learned: validation or sources. Of the sources its start,
        # which is held, knows all there is to know, and the best update there is none; the others
        # tune their rates on validation too.
        "rule_learned_on": "validation",
        "inner_learning_rate": 0.1,  # of the inner loop's gradient descent
        "inner_steps": 3,  # of the inner loop
        "remat": False,  # whether inner steps are computed again, which saves memory
        "weights": {task: 1.0 for task in ALL},  # of each task; 0 leaves it out
        "domain_weights": dict.fromkeys(SOURCES, 1.0),  # of each source domain
        "shots": (1, 5),  # of an episode, drawn evenly
    }
    config.adapt = {
        "shots": (0, 1, 5, 10),  # of the columns of the table
        "episodes": 50,  # of a cell of the table
        "steps": 3,  # of gradient descent at test
        # Episodes side by side in a program. One is fastest on a CPU, which runs a program a core;
        # recommendation encodes the catalogue once a program. On a GPU, all of them.
        "chunk": {task: 25 if task == "recommendation" else 1 for task in ALL},
        # Tuned for each method and task on the validation domains, with as many values
        # each.
        "validation_episodes": 10,  # by which each of these is scored
        "learning_rates": SGD_RATES,  # of gradient descent, tuned on validation
        "adam_learning_rates": ADAM_RATES,  # of Adam, tuned on validation
        # Of a learned optimizer's updates, tuned on validation: it serves all tasks, and
        # makes steps as small as the one that bears least.
        "rule_factors": RULE_FACTORS,
        "penalties": PENALTIES,  # of ridge and logistic regression, tuned on validation
        # Which tasks a method serves; () leaves it out.
        "methods": {
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
