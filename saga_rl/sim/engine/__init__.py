"""The closed loop: `loop` over events, `arrival` of requests, a worker's `batching` and its `waiting` queue,
`admit`ting, `tier`s and `offloading`, work `stealing`, runs of equal iterations taken at once (`fast_forward`), which
sessions live (`live_sessions`). `state` is the world's arrays. May import `cost`, `cache`, `config` and `reference`."""
