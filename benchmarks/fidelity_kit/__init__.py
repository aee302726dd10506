"""Parts of `benchmarks/fidelity.py`: two real engines, a log of their iterations, and the simulator beside them."""
