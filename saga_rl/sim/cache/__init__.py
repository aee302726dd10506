"""A worker's KV blocks: the `pool` with its prefix cache, whose blocks go (`evict`), and blocks by last use
(`block_ring`). May import nothing of the simulator beside it."""
