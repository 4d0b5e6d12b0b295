"""Losses: pure functions of arrays, each guarded so that a mask of nothing costs nothing."""
