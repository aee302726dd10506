"""Parts of `benchmarks/identity.py`: recorded and made conversations, their bodies in each API, and a judge."""
