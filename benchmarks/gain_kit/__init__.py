"""What `benchmarks/serving_gain.py` and `benchmarks/gpu/gain.py` are made of."""
