"""Search the options of an offline learner, and write the best trial's checkpoint: `saga-rl train sweep`."""

from saga_rl.cli.train.sweep import main
from saga_rl.learn.script import run_script

if __name__ == "__main__":
    run_script(main)
