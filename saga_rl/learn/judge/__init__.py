"""Is a policy better? Named `workloads` over their `sessions`, the `points` where they are looked at, paired
`evaluation`, the `protocol/` that makes the report of the checkpoints, and off-policy estimates (`ope/`). May import
`data` and `experiments`."""
