"""Experiments: configs, command lines, tables, benchmarks and the guide end to end."""

from experiments.launch import begin

begin()
