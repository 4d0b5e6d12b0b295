"""Losses: pure functions of arrays, each 0 under an empty mask."""
