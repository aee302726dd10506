"""What vLLM loads in each of its processes (entry point `vllm.general_plugins`)."""

from __future__ import annotations


def register() -> None:
    """Called by vLLM, perhaps more than once in a process."""
