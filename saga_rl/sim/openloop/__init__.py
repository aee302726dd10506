"""Replay of a fixed string of requests, where the future does not depend on the policy: `record` one, make it a
`script`, `replay` it under a policy, and `bound` all policies by Bélády. `unit` counts as libCacheSim does. May import
the rest of the simulator but `stepping`."""
