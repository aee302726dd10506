"""Collect decisions under behaviour policies into Minari datasets: `saga-rl train collect`."""

from saga_rl.cli.train.collect import main
from saga_rl.learn.script import run_script

if __name__ == "__main__":
    run_script(main)
