"""A world whose arrays lie in one stretch of memory, so that to begin an episode anew is to copy that stretch.

What an episode never writes (`FIXED`) stays where it is and may be shared by any number of copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.sim.engine.state import World

FIXED = ("tree", "plan", "limits", "real", "cost")
"""Parts of a world that a run only reads."""
ALIGN = 64
"""Bytes, a cache line: where each array begins."""


class Template:
    """What `world` is now. `image`: (bytes,) of everything that changes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.image = memory(1, _place_all(world)[1])[0]
        for source, target in zip(arrays(world), arrays(self.on(self.image)), strict=True):
            target[...] = source

    def on(self, stretch: NDArray[np.uint8]) -> World:
        """The world whose changing arrays are views of `stretch`, (bytes,) at least as long as `image`."""
        places = iter(_place_all(self._world)[0])

        def view(array: NDArray[Any]) -> NDArray[Any]:
            at = next(places)
            return stretch[at:at + array.nbytes].view(array.dtype).reshape(array.shape)

        return _mapped(self._world, view)


def arrays(world: World) -> list[NDArray[Any]]:
    """Those that change, in the order in which they are packed."""
    found: list[NDArray[Any]] = []

    def note(array: NDArray[Any]) -> NDArray[Any]:
        found.append(array)
        return array

    _mapped(world, note)
    return found


def memory(rows: int, size: int) -> NDArray[np.uint8]:
    """(rows, size or more) zeros, each row aligned."""
    size = -(-size // ALIGN) * ALIGN
    raw = np.zeros(rows * size + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start:start + rows * size].reshape(rows, size)


def _place_all(world: World) -> tuple[list[int], int]:
    """Where each array begins, and the end of the last one."""
    sizes = [-(-a.nbytes // ALIGN) * ALIGN for a in arrays(world)]
    ends = np.cumsum([0, *sizes])
    return ends[:-1].tolist(), int(ends[-1])


def _mapped(world: World, f: Callable[[NDArray[Any]], NDArray[Any]]) -> World:
    def each(part: Any) -> Any:
        return f(part) if isinstance(part, np.ndarray) else type(part)(*map(each, part))

    return world._replace(**{name: each(getattr(world, name)) for name in World._fields if name not in FIXED})
