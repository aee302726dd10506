"""The evaluation protocol: every target beside its figure, on test sessions, with intervals, from one command."""
