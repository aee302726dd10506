"""What is said before a model is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from saga_rl.policies.presets import preset
from saga_rl.runtime.launch.startup import tier_hint


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
