"""What is said before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from saga_rl.errors import UserError
from saga_rl.policies.presets import preset
from saga_rl.runtime.launch.startup import caching_hint, checked, tier_hint


def config(connector: str | None) -> SimpleNamespace:
    return SimpleNamespace(kv_transfer_config=None if connector is None else SimpleNamespace(kv_connector=connector))


@pytest.mark.parametrize("policy", ["likely", "saga+"])
@pytest.mark.parametrize("connector", ["OffloadingConnector", "LMCacheConnectorV1", "SimpleCPUOffloadConnector"])
def test_who_offloads_hears_that_a_policy_does_not_reckon_with_it(policy: str, connector: str) -> None:
    hint = tier_hint(config(connector), preset(policy))
    assert hint is not None and connector in hint and "--policy auto" in hint


@pytest.mark.parametrize(("policy", "connector"), [
    ("auto", "OffloadingConnector"), ("lru", "OffloadingConnector"), ("saga", "OffloadingConnector"), ("likely", None),
    ("likely", "NixlConnector")])
def test_nobody_else_is_bothered(policy: str, connector: str | None) -> None:
    assert tier_hint(config(connector), preset(policy)) is None


def test_a_vllm_without_connectors_is_no_reason_to_fail() -> None:
    assert tier_hint(SimpleNamespace(), preset("likely")) is None


@pytest.mark.parametrize(("policy", "caching", "said"), [
    ("auto", False, True), ("saga", False, True), ("lru", False, False), ("auto", True, False), ("auto", None, False)])
def test_who_evicts_by_a_policy_hears_that_nothing_is_cached(policy: str, caching: bool | None, said: bool) -> None:
    cache = SimpleNamespace() if caching is None else SimpleNamespace(enable_prefix_caching=caching)
    hint = caching_hint(SimpleNamespace(cache_config=cache), preset(policy))
    assert (hint is not None) == said
    assert hint is None or "prefix caching is off" in hint
    assert caching_hint(SimpleNamespace(), preset(policy)) is None


def test_the_rust_front_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime_kit import make_config

    from saga_rl.runtime.config.ours import SCHEDULER

    config = make_config(tmp_path, scheduler=SCHEDULER)
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(UserError, match="VLLM_USE_RUST_FRONTEND: is set, and the Rust server routes by itself"):
        checked(config)
