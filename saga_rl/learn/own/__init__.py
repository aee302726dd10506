"""`saga-rl learn`: from a trace of one's own traffic to a policy that is at least safe, in one run.

`material` reads and splits, `world` is what the policy will serve in, `find` searches, `cells` judges on test sessions,
`rule` says what is served, `output` writes it down; `run` is the order of all that. May import `search`, `judge`, and
`experiments`.
"""
