"""Whose KV blocks go: vLLM's free `block_queue` over `runs` of blocks, `ranking` of `victims` by the policy, `floors`
of tenants, and the cached prefix of who waits (`prefix_memo`).
May import `runtime.sessions`, `runtime.config` and `policies`."""
