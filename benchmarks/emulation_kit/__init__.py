"""Parts of benchmarks/emulated_device.py."""
