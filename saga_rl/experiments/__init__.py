"""Experiments: arms x points x seeds over a backend. May import `runtime`, `env`, `replay` and what lies below them.

One run is a `cell`; the `runner` runs what the `journal` lacks on a backend: `simulated` in processes, or the real and
emulated servers of `bench.measure`. `tuning` spends a budget, `intervals` judges, `report` shows. What is left to an
experiment is its definition: `compare/` (`saga-rl compare`), `bench/` (`saga-rl bench`), `learn.judge.protocol`.

To add an arm: simulated, register the policy or preset (`policies`), and `compare` has it; in the protocol, name it in
a row's arms (`learn.judge.protocol.closed_rows`); served, write a line in `bench.arms.ARMS`.
To add an experiment: a `journal.Kind`; cells by `cell.make_cell(spec, code, data)`, with a function that runs specs;
`with opened(out, KIND, Head(code)) as j: Runner(j, Processes(executor, run_specs), console).run("what", cells)`.
"""
