"""The CPU tier of one engine: vLLM's offloading chooses by the eviction policy (`attach`, `shelf`), also where vLLM
loads it by name (`cache_policy`). May import `engine.kv` and what that may."""
