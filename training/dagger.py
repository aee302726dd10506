"""Rounds of ranking on the policy's own states (DAgger): train, play, label, add, train again: `saga-rl train
dagger`."""

from saga_rl.cli.train.dagger import main
from saga_rl.learn.script import run_script

if __name__ == "__main__":
    run_script(main)
