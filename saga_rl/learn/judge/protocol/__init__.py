"""The evaluation protocol: every target beside its figure, on test sessions, with intervals, from one command.
May import the rest of `judge`, and `experiments`."""
