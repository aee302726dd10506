"""A worker's KV blocks: the `pool` with its prefix cache, whose blocks go (`evict`), and blocks by last use
(`block_ring`). May import nothing of the simulator beside it."""

from saga_rl.moved import names_in

__getattr__ = names_in("saga_rl.sim.cache", "saga_rl.sim.cache.pool")
