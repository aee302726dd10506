"""One engine: vLLM's `scheduler` with our policies. `lifecycle` tells what happens to requests, `kv/` is whose blocks
go, `queueing/` who is served next, `offload/` the CPU tier; `swap` and `policy_change` put other policies in force;
`commands` is what the API server may ask. Its modules see the scheduler as `view.EngineView`. May import `sessions`,
`recording` and `config`."""
