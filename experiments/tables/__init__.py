"""Tables: how rows are laid out, and the copies of them in experiments/results."""
