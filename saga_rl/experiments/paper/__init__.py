"""SAGA's tables and figures, each beside what the simulator gives (`saga-rl reproduce`).

`values.py` holds the paper's own numbers, `arms.py` which policies stand for which system, `tables.py` which runs stand
for which row; `cells.py` runs them (`served.py`: on vLLM's schedulers), `run.py` chooses the memory pressure,
`judge.py` compares, `output.py` writes. May import `experiments`, `env`, `sim`, `policies`, `aeg`, `report`, and of
`runtime` the router and the virtual engines.
"""
