"""From episodes to scores, intervals and rows of results; the baselines to compare with."""
