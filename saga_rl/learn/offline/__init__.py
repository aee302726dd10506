"""Learning from datasets: one loop (`train`) over the `learners/`, checkpoints `from_datasets`, rounds of imitation
(`dagger`), searches over options (`sweep`). May import `data`."""
