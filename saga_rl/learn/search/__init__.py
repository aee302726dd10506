"""Direct search: `cma_es` over `parameter_vector`s, judged in `scenarios`. May import `judge`."""
