"""Runs: flags, configs, tables, the guide end to end."""

from experiments.launch import begin

begin()
