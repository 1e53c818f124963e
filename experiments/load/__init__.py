"""Requests under load, in a closed loop and as they come: `specdec run experiment=load`, see command.py."""
