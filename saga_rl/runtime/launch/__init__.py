"""How a server comes up: `serve` (the command), `plugin` (what vLLM loads), `startup` (checks, and the line that says
what serves). May import every other part."""
