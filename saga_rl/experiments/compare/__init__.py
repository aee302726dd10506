"""`saga-rl compare`: every policy on the same arrangements of the same sessions; see docs/how-to/compare.md.

A *cell* is one simulated run. Stages, each a set of cells: scouting (where memory presses, what load the stock
arrangement sustains) and tuning, both on training sessions; then the reported cells, on others.
May import the rest of `experiments`, not `bench`.
"""
