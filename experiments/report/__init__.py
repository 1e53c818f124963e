"""One self-contained page out of a run's directory: readable offline, on paper, on a phone and in the dark."""

from specdec.experiments.report.page import write_report
from specdec.experiments.report.run_files import read_finished

__all__ = ["read_finished", "write_report"]
