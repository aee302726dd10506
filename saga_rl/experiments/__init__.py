"""Experiments: arms side by side on the same sessions, with intervals. `compare/` in the simulator, `bench/` on real
vLLM servers. May import `runtime`, `env`, `replay` and what lies below them."""
