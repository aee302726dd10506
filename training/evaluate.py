"""Evaluate a checkpoint on held-out sessions: against Belady (open loop) and presets (closed loop, paired seeds):
`saga-rl train evaluate`."""

from saga_rl.cli.train.evaluate import main
from saga_rl.learn.script import run_script

if __name__ == "__main__":
    run_script(main)
