"""Speed and memory, as ratios measured in one run; each prints a table and writes JSON rows."""
