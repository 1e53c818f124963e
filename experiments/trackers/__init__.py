"""Trackers: where a run's configuration, numbers, tables and figures go besides its own directory.

A new tracker is one file here and one yaml in conf/tracker. Whatever a tracker raises, the experiment goes on: see
`Guarded`.
"""
