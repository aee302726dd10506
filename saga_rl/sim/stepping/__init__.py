"""Runs that stop at every decision: one at a time (`*_stepper`), or many in one compiled call (`replay_vector`,
`closed_vector`). May import the rest of the simulator."""
