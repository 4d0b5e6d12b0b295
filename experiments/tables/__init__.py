"""The tables of published results, one a module, and their copies in experiments/results."""
