"""What numba needs of us: loops compiled once for every policy (`jit`), a world as one pointer (`refs`), structures
that count no references (`unowned`). May import `engine` and `cache`."""
