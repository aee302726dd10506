"""Simulated and measured side by side: one trace through the simulator and through two real vLLM engines on the CPU.

    python benchmarks/fidelity.py [--levels 0.7 1.4 2.5] [--repeats 3] [--out DIR]

What is run and how to read it: `docs/explanation/fidelity.md`. Needs vLLM (extra serve-cpu) and two cores that nothing
else uses.
"""

if __name__ == "__main__":
    # Not at the top: engines start as processes that import this file, and vLLM has to be loaded there before numba.
    from fidelity_kit.command import main

    main()
