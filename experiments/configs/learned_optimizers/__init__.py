"""Configs of learned optimizers: one for the table, and others for one rule on one problem."""
