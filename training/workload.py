"""Write the sessions of a named workload's part to a trace file, so that whatever takes files can be trained on them:
`saga-rl train workload`."""

from saga_rl.cli.train.workload import main
from saga_rl.learn.script import run_script

if __name__ == "__main__":
    run_script(main)
