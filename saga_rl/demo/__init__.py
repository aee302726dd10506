"""`make demo`: the whole ring on this machine, from traces to a checkpoint that schedules two real vLLM engines, and
back to a trace. `python -m saga_rl.demo --help`. May import every room but `cli`."""
