"""Evaluate learned policies on test sessions by the whole protocol: every target beside its figure, one report:
`saga-rl train protocol`."""

from saga_rl.cli.train.protocol import main
from saga_rl.learn.script import run_script

if __name__ == "__main__":
    run_script(main)
