"""Decisions as datasets: `games` plays episodes, `collect` logs what was decided, `dataset` keeps it as Minari does."""
