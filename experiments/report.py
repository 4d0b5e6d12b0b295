"""Rebuild the report of a finished run: `python -m experiments.report RUN`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import run_folder, runner
from experiments.config_files import ConfigError
from experiments.domain_split import prepare
from experiments.reports.page import write_report
from experiments.reports.terminal import print_tables
from experiments.showcase import showcase
from metaguide import load, run_config
from metaguide.evaluation.results import read
from metaguide.training.progress import say


def main(argv: Sequence[str]) -> None:
    """Rebuild the report of the run in the folder that the command line names.

    Raises:
        ConfigError: the command line is not of this form.
        ResultsError: there are no results in the folder.
    """
    if len(argv) != 2 or argv[1].startswith("-"):
        raise ConfigError("usage: python -m experiments.report RUN, the folder of a run")
    run = Path(argv[1])
    results, shown = read(run), ()
    if run_config.find(run) is not None:
        shown = showcase(load(run), prepare(run_folder.read_config(run), run))
    path = write_report(results, run, shown)
    print_tables(results.rows)
    say(f"report: {path}")


if __name__ == "__main__":
    try:
        main(sys.argv)
    except runner.USER_ERRORS as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
