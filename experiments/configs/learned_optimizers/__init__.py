"""Configs of learned optimizers: of the table, and of one rule on one problem each."""
