"""The guide on the embedded bazaar: the default of every experiment module.

python -m experiments.guide                          2 CPU cores, 3 seeds, 50 episodes per cell
python -m experiments.guide --config.preset=quick    a first look: short training, fewer methods
python -m experiments.guide --config.preset=methods  every method but the learned optimizers
python -m experiments.guide --config.preset=full     the same, longer, with 600 episodes per cell
python -m experiments.guide --config.preset=optimizers --workdir=runs/guide_optimizers
                                                     learned optimizers against tuned SGD and Adam
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
PENALTIES = (3.0, 30.0, 300.0)
MAP_PENALTIES = (30.0, 100.0, 300.0)
MAP_ALL_PENALTIES = (0.3, 3.0, 30.0)
SOURCES = ("clothing", "computers", "cosmetics", "furniture", "groceries", "phones", "sports")
ADAPTED = ("classification", "sentiment", "questions")
CLASSES = ("classification", "sentiment")
ALL = (*ADAPTED, "recommendation")
"""The tasks a guide is trained on; add a new one to `ADAPTED`."""


METHODS = (
    *("scratch", "zero-shot", "fine-tuning", "fine-tuning-adam", "head-only", "head-only-adam"),
    *("ridge", "named-ridge", "logistic", "named-prototypes", "soft-k-means", "label-spreading"),
    *("vectors+words", "tf-idf"),
    *("map-head", "map-all"),
    *("maml", "first-order", "anil", "prototypical"),
    *("rnn", "lstm", "hyper", "lstm-head", "maml+lstm"),
)
LEARNERS = METHODS[METHODS.index("maml") :]
"""The methods that are meta-trained."""

_TASKS = one_of(*ALL)
_NO_METHOD = Range(f"the name of a method, {', '.join(METHODS)}", lambda value: False, late=True)

EVERY_METHOD = {
    "metatrain": {"learners": ("maml", "first-order", "anil", "prototypical")},
    "adapt": {
        "methods": {
            "scratch": ADAPTED,
            "logistic": CLASSES,
            "soft-k-means": CLASSES,
            "map-all": ADAPTED,
        }
    },
}
"""Overrides that add what the default leaves out, but for learned optimizers and Adam."""

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
    "encoder.weights": text(),
    "encoder.prefix": text(),
    "encoder.pooling": one_of("", "mean", "cls"),
    "encoder.length": integer(3),
    "encoder.cache": text(),
    "encoder.train": one_of("frozen", "lora", "last", "all"),
    "encoder.rank": integer(1),
    "encoder.layers": integer(0),
    "encoder.learning_rate_scale": positive(),
    "model.width": integer(1),
    "model.layers": integer(0),
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
    "multitask.users": integer(2),
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
    "adapt.queries": integer(1),
    "adapt.users": integer(1),
    "adapt.steps": integer(1),
    **{f"adapt.chunk.{task}": integer(1) for task in ALL},
    "adapt.validation_episodes": integer(1),
    "adapt.learning_rates": several(positive()),
    "adapt.adam_learning_rates": several(positive()),
    "adapt.rule_factors": several(positive()),
    "adapt.penalties": several(positive()),
    "adapt.map_penalties": several(positive()),
    "adapt.map_all_penalties": several(positive()),
    **{f"adapt.methods.{method}": optional(several(_TASKS, least=0)) for method in METHODS},
    "adapt.methods.*": _NO_METHOD,
}
"""Valid values of the fields of every config that a module of the guide reads."""

RELATIONS = (
    multiple("model.width", "model.heads"),
    at_most("episodes.way", "model.way"),
    at_most("adapt.shots", "episodes.shots"),  # a support holds no more shots than that
    late(multiple("metatrain.meta_batch_size", "metatrain.tasks_per_chunk")),
)


def get_config() -> ConfigDict:
    """Return the config; `--help` shows the comment on each field."""
    config = ConfigDict()
    config.table = "bazaar"  # name of the table in results.json
    config.seed = 0  # seed of training and test episodes; the first of several
    config.seeds = 3  # number of guides to train, each from its own seed
    config.init_from = ""  # work folder of the previous stage, when a stage runs alone
    config.log_every = 10  # steps between two lines of metrics
    config.checkpoint_every = 200  # steps between two checkpoints
    # optimised, or fast: compiles in a third of the time, for short runs
    config.compilation = "optimised"
    config.preset = "default"  # named overrides: quick, methods, full, optimizers or tiny
    config.presets = {
        # A first look: 48 to 82 s, once the programs are compiled.
        "quick": {
            "seeds": 1,
            "data": {"reviews": 240, "questions": 160, "users": 120},
            "pretrain": {"steps": 10},
            "multitask": {"steps": 60},
            "metatrain": {"learners": ()},
            "adapt": {
                "shots": (0, 5),
                "users": 10,
                "episodes": 20,
                "methods": {"fine-tuning": (), "map-head": ("sentiment",), "head-only": ()},
            },
        },
        "methods": EVERY_METHOD,
        "full": {
            "adapt": {"episodes": 600, **EVERY_METHOD["adapt"]},
            "pretrain": {"steps": 2000},
            "multitask": {"steps": 3000},
            "metatrain": {"steps": 1000, **EVERY_METHOD["metatrain"]},
        },
        # Learned optimizers against tuned SGD and Adam, all with the same number of steps.
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
                    "ridge": (),
                    "named-ridge": (),
                },
            },
        },
        # For tests and notebooks: every stage runs, but nothing is learned.
        "tiny": {
            "seeds": 1,
            "compilation": "fast",
            "data": {"categories": 6, "users": 20, "reviews": 60, "questions": 40},
            "model": {"width": 16, "layers": 1, "channels": (4, 8, 8)},
            "text": {"vocabulary": 1000, "pair": 112, "buckets": 256},
            "pretrain": {"steps": 4, "batch": 8},
            "multitask": {"steps": 4, "meta_batch_size": 2},
            "metatrain": {
                "steps": 2,
                "meta_batch_size": 1,
                "inner_steps": 1,
                "learners": ("maml", "anil", "prototypical"),
            },
            "adapt": {
                "users": 8,
                "episodes": 4,
                "steps": 2,
                "validation_episodes": 2,
                **EVERY_METHOD["adapt"],
            },
            "episodes": {"queries": 6},
        },
    }

    config.data = {
        # bazaar, catalogue, or a real data set: shops, online_shopping, fdu_mtl, arsc, subjqa,
        # pricerunner or amazon_sequences
        "world": "bazaar",
        "folder": "",  # folder of the catalogue, if world is catalogue
        "sources": (),  # domains to train on; if empty, all that are not named below
        "held_out": ("home_appliances", "toys"),  # domains for the test, which no stage sees
        "validation": ("books",),  # domains that rates and penalties are tuned on
        # Parameters of the bazaar; see metaguide.data.bazaar.
        "seed": 0,  # seed of the generated world
        "categories": 8,  # categories per domain, 1 to 8
        "reviews": 1000,  # reviews per domain
        "questions": 400,  # questions per domain
        "users": 2000,  # users per domain
        "shared": 0.7,  # how much domains have in common, 0 to 1
        "chinese": 0.25,  # share of products described in Chinese
    }
    config.text = {
        # number of ids of the tokenizer, which is trained on source domains only
        "vocabulary": 2000,
        "text": 28,  # maximum tokens of a product or a review
        "pair": 72,  # maximum tokens of a question with its passage
        "name": 8,  # maximum tokens of a class name
        "buckets": 32768,  # embeddings of hashed n-grams, read besides tokens; 0 for none
    }
    config.encoder = {
        "weights": "",  # Hugging Face folder of a pretrained encoder of texts; empty for none
        "prefix": "",  # text put before every text for it; "query: " for the e5 models
        "pooling": "",  # mean or cls; if empty, what the folder says
        "length": 128,  # maximum tokens that it reads of a text, if frozen; else those of text
        "cache": "",  # folder that keeps its vectors; if empty, one in the work folder
        # what trains of it. frozen: nothing, and only its vectors are read. Otherwise it is the
        # guide's encoder of texts: lora, last or all of its parameters
        "train": "frozen",
        "rank": 8,  # rank of the factors that lora trains beside queries and values
        "layers": 2,  # number of last layers that last trains; 0 for the heads alone
        # factor on a stage's learning rate, for the parameters of the encoder that train
        "learning_rate_scale": 0.1,
    }
    config.model = {
        "width": 48,  # width of the encoder, a multiple of heads
        "layers": 1,  # layers of our own Transformer; 0 for none, with n-grams or weights
        "heads": 4,  # number of attention heads
        "dropout": 0.1,  # dropout rate in pre-training
        # channels of the picture convolutions, each of which halves the side
        "channels": (16, 32, 64),
        "image": True,  # whether pictures are read
        "way": 10,  # outputs of the classification head: the most classes it can distinguish
    }
    config.episodes = {
        "way": 5,  # classes per episode
        "shots": 10,  # largest number of shots; smaller supports are prefixes of it
        "queries": 15,  # query examples per episode
        # products to rank in a training episode of recommendation: first of all those that its
        # users took, so give room for them
        "candidates": 64,
        "max_answer_tokens": 8,  # maximum tokens of an answer
        # share in common from which two texts count as one example; 1: identical texts only
        "near": 1.0,
    }

    config.pretrain = {
        "steps": 150,  # steps of pre-training
        "batch": 64,  # texts, pictures or pairs per step
        "learning_rate": 4e-3,  # peak learning rate of AdamW
        "weight_decay": 0.01,  # weight decay of AdamW
        # λ of each objective; 0 leaves it out.
        "weights": {
            "masked_language": 1.0,
            "denoising": 1.0,
            "image_text": 0.2,
            "text_text": 0.0,
        },
        "mask_rate": 0.15,  # share of words to hide
        "mask_variant": "mask",  # how to hide a word: mask, or 80-10-10
        "noise": 0.1,  # standard deviation of the noise on pictures, whose values span 1
        "occlusion": 10,  # side of the square hole in a picture, in pixels; 0 for none
    }
    config.multitask = {
        "steps": 400,  # steps of joint training
        "meta_batch_size": 4,  # episodes per task and step, each from a uniformly drawn domain
        "users": 32,  # users of an episode of recommendation
        "learning_rate": 3e-3,  # peak learning rate of AdamW
        "weight_decay": 0.01,  # weight decay of AdamW
        "weighting": "fixed",  # weighting of the losses: fixed or uncertainty
        "weights": {task: 1.0 for task in ALL},  # λ of each task; 0 leaves it out
        "shots": (1, 5),  # shots of an episode, drawn uniformly from these
    }
    config.metatrain = {
        "learner": "maml",  # learner that `experiments.metatrain` trains
        # Learners that the guide trains; the presets methods and full add more.
        "learners": ("maml", "prototypical"),
        "steps": 40,  # steps of meta-training
        "meta_batch_size": 2,  # episodes per task and step
        "tasks_per_chunk": 1,  # tasks that a device maps over at once; 0 for all
        "learning_rate": 3e-4,  # peak learning rate of the outer AdamW
        "rule_learning_rate": 1e-2,  # learning rate of AdamW on a learned optimizer
        # Where a learned optimizer starts: "" for the trained one of its kind in the package, or a
        # file or work folder that holds another one.
        "rule_from": {"rnn": "", "lstm": "", "hyper": ""},
        # Domains that a learned optimizer is trained on: validation or sources. The fixed
        # parameters it starts from already fit the sources, so the best update there is no update.
        # Other methods tune their rates on the validation domains too.
        "rule_learned_on": "validation",
        "inner_learning_rate": 0.1,  # learning rate of gradient descent in the inner loop
        "inner_steps": 3,  # steps of the inner loop
        "remat": False,  # whether to recompute inner steps, which saves memory
        "weights": {task: 1.0 for task in ALL},  # weight of each task; 0 leaves it out
        "domain_weights": dict.fromkeys(SOURCES, 1.0),  # weight of each source domain
        "shots": (1, 5),  # shots of an episode, drawn uniformly from these
    }
    config.adapt = {
        "shots": (0, 1, 5, 10),  # numbers of shots in the table
        "episodes": 50,  # episodes per cell of the table
        "queries": 30,  # query examples per episode of the table
        "users": 40,  # users of recommendation for each episode of the other tasks
        "steps": 3,  # steps of gradient descent at test
        # Episodes side by side in a program. On a CPU, which runs one program per core, 1 is
        # fastest, except for recommendation, which encodes the catalogue once per program. On a
        # GPU, use all of them.
        "chunk": {task: 25 if task == "recommendation" else 1 for task in ALL},
        # Tuned for each method and task on the validation domains, each over the same number of
        # values.
        "validation_episodes": 10,  # episodes that score each value on validation
        "learning_rates": SGD_RATES,  # learning rates of gradient descent, tuned on validation
        "adam_learning_rates": ADAM_RATES,  # learning rates of Adam, tuned on validation
        # Factors on a learned optimizer's updates, tuned on validation. It serves all tasks, and
        # its steps are as small as the most sensitive task requires.
        "rule_factors": RULE_FACTORS,
        "penalties": PENALTIES,  # penalties of ridge and logistic regression, tuned on validation
        "map_penalties": MAP_PENALTIES,  # penalties of the MAP head, tuned on validation
        # Penalties of all parameters towards the trained ones, tuned on validation.
        "map_all_penalties": MAP_ALL_PENALTIES,
        # Which tasks a method is used for; () leaves it out.
        "methods": {
            "scratch": (),
            "zero-shot": ALL,
            "fine-tuning": ADAPTED,
            "fine-tuning-adam": (),
            "head-only": ALL,
            "head-only-adam": (),
            "ridge": CLASSES,
            "named-ridge": ("classification",),
            "named-prototypes": (),
            "logistic": (),
            "soft-k-means": (),
            "label-spreading": (),
            "vectors+words": (),
            "tf-idf": (),
            "map-head": CLASSES,
            "map-all": (),
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
