"""What an engine iteration costs: the `iteration`'s form, `profile`s of its constants (those that ship in `profiles/`),
how they are fitted (`fit`), and what a model weighs (`models`). Imports no other room of the simulator."""

from saga_rl.moved import names_in

__getattr__ = names_in("saga_rl.sim.cost", "saga_rl.sim.cost.profile")
