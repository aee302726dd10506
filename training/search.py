"""Search for policies that decide together (order, admission, eviction, or placement) by whole simulated runs: `saga-rl
train search`."""

from saga_rl.cli.train.search import main
from saga_rl.learn.script import run_script

if __name__ == "__main__":
    run_script(main)
