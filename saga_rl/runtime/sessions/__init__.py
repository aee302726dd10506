"""What is known of sessions: `hints` of clients, the `tracker` of chains, their `completion`, and `statistics` kept
over restarts. Knows no vLLM. May import `config`."""
