"""Which engine serves a request: the `router` and its `placement` in vLLM's client, work `stealing`, and `engines` that
die. May import `sessions`, `config` and the engine's `metrics`."""
