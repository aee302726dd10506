"""The simulator: vLLM's scheduling of agents' calls in compiled code, exact to the block and the iteration.

What a user imports is `config.SimConfig`, `cluster.simulate` and `openloop.bound.bound`. `cost/` says what an iteration
takes, `cache/` keeps a worker's KV blocks, `engine/` is the closed loop, `openloop/` replays a fixed string of requests
(where Bélády is a bound), `stepping/` stops a run at every decision (for environments and data), `results/` makes
figures of a run, `compiled/` holds what numba needs. May import `aeg` and `policies`.
"""
