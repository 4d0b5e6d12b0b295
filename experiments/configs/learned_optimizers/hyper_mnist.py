"""The HyperNetwork rule, trained to train a perceptron on MNIST.

METAGUIDE_DATA_DIR=FOLDER python -m experiments.learn_optimizer \
    --config=experiments/configs/learned_optimizers/hyper_mnist.py
"""

from ml_collections import ConfigDict

from experiments.configs.learned_optimizers import table


def get_config() -> ConfigDict:
    """Return the config of the table, reduced to one rule on one problem."""
    config = table.get_config()
    config.learner, config.problem, config.seeds = "hyper", "mnist", 1
    return config
