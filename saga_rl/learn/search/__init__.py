"""Direct search: `cma_es` over `parameter_vector`s, judged in `scenarios`. May import `judge`."""

from saga_rl.moved import names_in

__getattr__ = names_in("saga_rl.learn.search", "saga_rl.learn.search.cma_es")
