"""Cells of the published tables: one method on one task, trained, tested and kept in a folder.

A cell has a folder of its own with the config it depends on, checkpoints, and at the end the raw
outcome of every test episode. A table is collected from the cells that are finished, so that its
methods may be trained by several commands, in any order.
"""
