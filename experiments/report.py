"""Make the report of a finished run again: `python -m experiments.report RUN`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import settings
from experiments.reports.page import write_report
from experiments.reports.terminal import print_tables
from experiments.showcase import showcase
from experiments.worlds import prepare
from metaguide import load
from metaguide.evaluation.results import read
from metaguide.guide import SERVING
from metaguide.training.progress import say


def main(argv: Sequence[str]) -> None:
    """Make the report of the run in the folder that the command line names.

    Raises:
        ConfigError: another command line.
        ResultsError: there are no results in the folder.
    """
    if len(argv) != 2 or argv[1].startswith("-"):
        raise settings.ConfigError("usage: python -m experiments.report RUN, the folder of a run")
    run = Path(argv[1])
    results, shown = read(run), ()
    if (run / SERVING).exists():
        shown = showcase(load(run), prepare(settings.read_config(run), run))
    path = write_report(results, run, shown)
    print_tables(results.rows)
    say(f"report: {path}")


if __name__ == "__main__":
    try:
        main(sys.argv)
    except settings.MENDABLE as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
