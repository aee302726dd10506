"""`serve --lazy-offload`: which flags vLLM gets, and what is refused before it is imported."""

from __future__ import annotations

import json

import pytest

from saga_rl.errors import UserError
from saga_rl.runtime.config import versions
from saga_rl.runtime.launch.lazy_offload import lazily


@pytest.mark.parametrize("flags", [["--port", "1", "--kv-offloading-size", "1.5", "--seed", "3"],
                                   ["--kv-offloading-size=1.5", "--port", "1", "--seed", "3"]])
def test_the_size_becomes_the_connectors(flags, monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda: ("vllm", "0.33.0+cpu"))
    out = lazily(flags, stock=False)
    assert out[:-2] == ["--port", "1", "--seed", "3"] and out[-2] == "--kv-transfer-config"
    told = json.loads(out[-1])
    assert told["kv_connector"] == "LazyOffloadConnector"
    assert told["kv_connector_extra_config"] == {"cpu_bytes_to_use": 3 << 29}


@pytest.mark.parametrize(("flags", "stock", "version", "cause"), [
    ([], False, "0.33.0", "there is none"),
    (["--kv-offloading-size", "1"], True, "0.33.0", "--policy stock"),
    (["--kv-offloading-size", "1", "--kv-transfer-config", "{}"], False, "0.33.0", "connector of its own"),
    (["--kv-offloading-size", "1", "--kv-offloading-backend", "lmcache"], False, "0.33.0", "names another"),
    (["--kv-offloading-size", "much"], False, "0.33.0", "is much"),
    (["--kv-offloading-size"], False, "0.33.0", "is empty"),
    (["--kv-offloading-size", "-1"], False, "0.33.0", "is -1"),
    (["--kv-offloading-size", "1"], False, "0.28.0", "0.32 or newer"),
])
def test_what_cannot_be_is_said(flags, stock, version, cause, monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda: ("vllm", version))
    with pytest.raises(UserError, match=cause):
        lazily(flags, stock)
