"""Learning by playing, with Stable-Baselines3: `sb3` (MaskablePPO over rows), `sb3_vector`, and `actors` as
checkpoints. May import `judge`, `offline`, `data` and `env`."""
