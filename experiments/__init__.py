"""Runs: flags, configs, tables, the guide end to end."""
