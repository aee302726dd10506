"""Who is served next: vLLM's waiting queue by policy (`request_queue`), `admission` of its head, service of
`tenants`. May import `engine.kv` and what that may."""
