"""Cells of the published tables: one method on one task, trained, tested and kept in a folder.

The folder of a cell holds the config it depends on, its checkpoints and, in the end, the raw
outcome of every test episode. A table is collected from the finished cells, so its methods may be
trained by several commands, in any order.
"""
