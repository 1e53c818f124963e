"""A generation to look at: every step's tree, what was proposed and what was accepted, and where its time went."""

from specdec.experiments.trace.make import render, trace_run

__all__ = ["render", "trace_run"]
