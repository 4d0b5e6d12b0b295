"""From objectives to trained parameters: state, step, loop, checkpoints."""
