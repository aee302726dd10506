"""Traces of agents' LLM calls as Agent Execution Graphs (AEG): the one thing that travels round the ring.

`trace` is what a trace is, `build` the one door to make one, `io` a file of it, `validate` what every room may rely on;
`split`, `scale`, `stats` and `forest` (which contexts share which KV blocks) work on whole traces. `importers/` and
`generators/` make traces, `inference/` measures what is inferred of them online. May import `policies` and what lies
below all rooms (`errors`, `files`, `provenance`).
"""
