"""The modules that can be run from the command line, with their defaults."""

from typing import NamedTuple


class Command(NamedTuple):
    """Defaults of a module, used unless the command line overrides them.

    Attributes:
        default: the config file.
        workdir: the work folder.
    """

    default: str
    workdir: str


_GUIDE = "experiments/configs/guide_bazaar.py"
_OPTIMIZERS = "experiments/configs/learned_optimizers"

COMMANDS = {
    "experiments.guide": Command(_GUIDE, "runs/guide"),
    "experiments.pretrain": Command(_GUIDE, "runs/pretrain"),
    "experiments.multitask": Command(_GUIDE, "runs/multitask"),
    "experiments.metatrain": Command(_GUIDE, "runs/metatrain"),
    "experiments.adapt": Command(_GUIDE, "runs/adapt"),
    "experiments.learn_optimizer": Command(
        f"{_OPTIMIZERS}/lstm_quadratic.py", "runs/learn_optimizer"
    ),
    "experiments.tables.sinusoid": Command("experiments/configs/sinusoid.py", "runs/sinusoid"),
    "experiments.tables.omniglot": Command("experiments/configs/omniglot.py", "runs/omniglot"),
    "experiments.tables.reviews": Command("experiments/configs/reviews.py", "runs/reviews"),
    "experiments.tables.in_domain": Command("experiments/configs/in_domain.py", "runs/in_domain"),
    "experiments.tables.products": Command("experiments/configs/products.py", "runs/products"),
    "experiments.tables.product_categories": Command(
        "experiments/configs/product_categories.py", "runs/product_categories"
    ),
    "experiments.tables.product_images": Command(
        "experiments/configs/product_images.py", "runs/product_images"
    ),
    "experiments.tables.questions": Command("experiments/configs/questions.py", "runs/questions"),
    "experiments.tables.recommendation": Command(
        "experiments/configs/recommendation.py", "runs/recommendation"
    ),
    "experiments.tables.universal": Command("experiments/configs/universal.py", "runs/universal"),
    "experiments.tables.learned_optimizers": Command(
        f"{_OPTIMIZERS}/table.py", "runs/learned_optimizers"
    ),
}
"""The modules that take a config, keyed by the name given to `python -m`."""
