"""Compiled code: one version of a function whatever the widths of its numbers, and one process that compiles it."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numba
import numpy as np
import pytest

from saga_rl.compile_cache import compiled_once
from saga_rl.njit import TRIED, njit


@njit
def scaled(x, by, offset=1, twice=False):
    return x * by + offset if not twice else 2 * x * by + offset


@njit
def calls(a, b):
    given, default = scaled(a[0], b[0]) + scaled(b[0], 3), scaled(7, -1, 5)
    flags = scaled(a[0], 2, twice=True) + scaled(a[0], 2, b[0], a[0] > 1)
    return given + default + flags + scaled(a[0], 0.5)


def test_whole_numbers_and_flags_of_any_kind_share_one_version() -> None:
    a, b = np.array([3], dtype=np.int32), np.array([4], dtype=np.int64)
    assert calls(a, b) == (13 + 13 - 2 + 13 + 16) + 2.5
    widths = sorted(str(arguments[1]) for arguments in scaled.overloads)
    assert widths == ["float64", "int64"], "a floating factor is another function, a narrow or literal one is not"


def test_products_of_narrow_numbers_do_not_wrap() -> None:
    big = np.array([2_000_000_000], dtype=np.int32)
    assert calls(big, big.astype(np.int64)) > 2 ** 61


@numba.njit
def of_a_user(a, b):
    return calls(a, b) + scaled(a[0], 1)


def test_a_function_that_numba_compiles_may_call_ours_however_deep() -> None:
    a, b = np.array([3], dtype=np.int32), np.array([4], dtype=np.int64)
    assert of_a_user(a, b) == calls(a, b) + 4


def test_what_is_raised_deep_below_arrives() -> None:
    @njit
    def third(x):
        if x > 2:
            raise ValueError("too much")
        return 1 / x

    @njit
    def second(x):
        return third(x) + 1

    @njit
    def first(x):
        return second(x) + 1

    for function in (first, numba.njit(lambda x: first(x))):
        assert function(1) == 3.0
        with pytest.raises(ValueError, match="too much"):
            function(3)
        with pytest.raises(ZeroDivisionError):
            function(0)


def test_a_signature_that_is_given_stays_as_it_is() -> None:
    @njit("int32(int32)")
    def same(x):
        return x

    assert [str(k[0]) for k in same.overloads] == ["int32"]


def test_a_numba_that_was_not_tried_compiles_as_it_does_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba, "__version__", "99.0.0")

    @njit(cache=False)
    def plain(x):
        return x + 1

    assert type(plain) is type(numba.njit(lambda x: x)) and plain(2) == 3


def test_the_numba_that_we_pin_is_one_that_was_tried() -> None:
    pinned = (Path(__file__).parents[1] / "constraints.txt").read_text()
    assert re.search(r"^numba==(.*)$", pinned, re.M)[1].startswith(TRIED)  # type: ignore[index]


def test_one_process_compiles_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    told: list[str] = []

    def second() -> None:
        with compiled_once("f(int64)"):
            told.append("second")

    waits = threading.Thread(target=second)
    with compiled_once("f(int64)"):
        waits.start()
        with compiled_once("g(int64)"):  # another function waits for nobody
            told.append("another")
        told.append("first")
    waits.join()
    assert told == ["another", "first", "second"]
    with compiled_once("f(int64)"), compiled_once("f(int64)"):  # compiled before: nobody waits, not even for oneself
        told.append("later")


def test_who_fails_to_compile_leaves_it_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    with pytest.raises(RuntimeError), compiled_once("f(int64)"):
        raise RuntimeError
    assert not list(tmp_path.glob("*.done"))
