"""Fixtures that every room's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real traces beside the checkout; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real traces are not here: no folder {SHARED.name} beside the checkout")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that start servers: they take longest, and what runs last should be short, so that no core
    waits for the other (`make test` deals out files in this order)."""
    live = {item.path for item in items if item.get_closest_marker("emulated") or item.get_closest_marker("vllm")}
    items.sort(key=lambda item: item.path not in live)
