"""The report of a run: rows laid out as tables, verdicts in words, figures, one page."""
