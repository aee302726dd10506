"""Anthropic bodies of older vLLM versions carry no `vllm_xargs` and no `cache_salt`: both go into the chat request that
vLLM makes of them, through a context variable that the middleware sets."""

from __future__ import annotations

import functools
import importlib
from contextvars import ContextVar
from typing import Any

from saga_rl.runtime.config.versions import require_method

EXTRA: ContextVar[dict[str, Any] | None] = ContextVar("saga_rl_http_extra", default=None)
_MODULE, _METHOD, _MARK = "vllm.entrypoints.anthropic.serving", "_build_base_request", "saga_rl"


def needed() -> bool:
    """Whether this vLLM's Anthropic bodies cannot carry what we add."""
    fields = importlib.import_module("vllm.entrypoints.anthropic.protocol").AnthropicMessagesRequest.model_fields
    return "vllm_xargs" not in fields or "cache_salt" not in fields


def check() -> None:
    """`UserError` if the method that is wrapped, in versions that need it, is not what we know."""
    if needed():
        require_method(importlib.import_module(_MODULE).AnthropicServingMessages, _METHOD, ())


def install() -> bool:
    """Set the hook where it is needed, once. Returns whether it is in force; AttributeError if vLLM has no such method.
    """
    if not needed():
        return False
    cls: Any = importlib.import_module(_MODULE).AnthropicServingMessages
    stock = getattr(cls, _METHOD).__func__
    if getattr(stock, _MARK, False):
        return True

    @functools.wraps(stock)
    def build(klass: Any, *args: Any, **kwargs: Any) -> Any:
        return applied(stock(klass, *args, **kwargs))

    setattr(build, _MARK, True)
    setattr(cls, _METHOD, classmethod(build))
    return True


def applied(request: Any) -> Any:
    """vLLM's chat request with what the middleware found."""
    extra = EXTRA.get()
    if extra:
        if "vllm_xargs" in extra:
            request.vllm_xargs = {**(request.vllm_xargs or {}), **extra["vllm_xargs"]}
        if "cache_salt" in extra:
            request.cache_salt = extra["cache_salt"]
    return request
