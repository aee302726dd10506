"""Learning from datasets: one loop (`train`) over the `learners/`, checkpoints `from_datasets`, rounds of imitation
(`dagger`), searches over options (`sweep`). May import `data`."""

from saga_rl.moved import names_in

__getattr__ = names_in("saga_rl.learn.offline", "saga_rl.learn.offline.from_datasets")
