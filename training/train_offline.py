"""Train a policy offline on datasets of `training/collect.py`, and write it as a checkpoint: `saga-rl train
offline`."""

from saga_rl.cli.train.train_offline import main
from saga_rl.learn.script import run_script

if __name__ == "__main__":
    run_script(main)
