"""The vLLM adapter. A request's way: `server/` (HTTP) -> `routing/` (which engine) -> `engine/` (queue, KV, memory).

`launch/` starts it all, `sessions/` knows the chains, `recording/` writes down what was served, `config/` is what all
share, `emulate/` puts an emulated device under a real vLLM. `engine` never imports `server` or `routing`. May import
`policies`, and of the simulator its cost profiles.
"""
