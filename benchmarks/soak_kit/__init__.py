"""What `benchmarks/soak.py` is made of: the load, what is read of the processes, and the faults."""
