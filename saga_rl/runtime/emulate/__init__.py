"""Emulated devices: real vLLM whose forward pass is a wait of as long as a cost profile says.

`settings` (what is emulated, from one environment variable), `device` (a timeline, no vLLM), `batch` (what a scheduled
step costs), `answers` (which tokens come out), `faults`; over them `executor`, `offload`, `kv_spec` and `platform`,
which vLLM loads. `shapes` writes model folders without weights. May import `sim.cost.profile`, and nothing of the
scheduler.
"""
