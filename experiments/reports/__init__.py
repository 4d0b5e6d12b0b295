"""The report of a run: tables, verdicts in words, and figures, on one page."""
