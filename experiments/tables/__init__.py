"""The tables that are compared with published results, one per module."""
