"""Old names of what people import say the new ones, and every new one is there."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from saga_rl.moved import MODULES, new_name


@pytest.mark.parametrize("old", MODULES)
def test_an_old_name_says_the_new_one(old: str) -> None:
    new = new_name(f"saga_rl.{old}")
    assert new is not None and importlib.util.find_spec(new) is not None
    with pytest.raises(ImportError, match=f"saga_rl.{old} is now {new}"):
        importlib.import_module(f"saga_rl.{old}")


@pytest.mark.parametrize(("package", "name", "module"), [
    ("sim.cost", "load_profile", "profile"), ("runtime.config", "SagaConfig", "settings"),
    ("learn.offline", "republish", "from_datasets"), ("learn.search", "SearchConfig", "cma_es")])
def test_a_folder_where_a_file_was_says_where_its_names_are(package: str, name: str, module: str) -> None:
    with pytest.raises(ImportError, match=f"{name} of saga_rl.{package} is now in saga_rl.{package}.{module}"):
        exec(f"from saga_rl.{package} import {name}")
    assert hasattr(importlib.import_module(f"saga_rl.{package}.{module}"), name)
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec(f"from saga_rl.{package} import nothing")
