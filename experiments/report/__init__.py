"""One self-contained page out of a run's directory: readable offline, on paper, on a phone and in the dark."""

from specdec.experiments.report.page import write_report

__all__ = ["write_report"]
