"""A trace played against a live server, and a cost profile fitted to one. Knows OpenAI's API, nothing of vLLM's code.

`run` plays and reports, over `drive` (closed loop), `client` and `text` (prompts that share what the trace says);
`calibrate` fits, over `probe` and `situations`. May import `aeg` and `sim`.
"""
