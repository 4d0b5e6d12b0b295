"""The LSTM on quadratics of 10 dimensions: the default of `experiments.learn_optimizer`."""

from ml_collections import ConfigDict

from experiments.configs.learned_optimizers import table


def get_config() -> ConfigDict:
    """Return the config of the table, reduced to one rule on one problem."""
    config = table.get_config()
    config.learner, config.problem, config.seeds = "lstm", "quadratic", 1
    return config
