"""Fine-tune a policy by reinforcement learning: MaskablePPO on any of the environments: `saga-rl train finetune`."""

from saga_rl.cli.train.finetune import main
from saga_rl.learn.script import run_script

if __name__ == "__main__":
    run_script(main)
