"""Is a policy better? Named `workloads` over their `sessions`, the `points` where they are looked at, paired
`evaluation`, and the `protocol/` that makes the report of the checkpoints. May import `data` and
`experiments`."""
