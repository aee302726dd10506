"""`gymnasium.make` of any task: a vector of one (`saga_rl.env.vector`), its episode arranged anew at each reset."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from saga_rl.env.infos import info_of
from saga_rl.env.rewards import Rewards
from saga_rl.env.settings import Episode, Settings
from saga_rl.env.text import Spec
from saga_rl.errors import UserError
from saga_rl.sim.stepping import book as bk

RENDERS = ["ansi"]


class EnvState(NamedTuple):
    """Where an environment was when it was cloned."""

    episode: Episode
    slot: Any
    """Of `sim.stepping`."""


class TaskEnv(gym.Env[NDArray[np.float32], np.int64]):
    """An environment of `task`; options: see `saga_rl.env.settings.Settings`, which `settings` holds.

    render_mode: None or "ansi": `render` gives a text. Raises `UserError` for a bad option, and at reset if there never
    is anything to choose.
    """

    metadata = {"render_modes": RENDERS, "render_fps": 1}  # noqa: RUF012  (Gymnasium's own convention)

    def __init__(self, task: str, *args: Any, render_mode: str | None = None, **options: Any) -> None:
        self.render_mode = check_render(render_mode)
        self.settings = Settings(task, *args, **options)
        self.observation_space, self.action_space = self.settings.observation_space, self.settings.action_space
        self.episode: Episode | None = None
        """What is played."""
        self._runner: Any = None
        self._act = np.zeros(1, np.int64)
        self._spec: EnvSpec | None = None

    @property
    def rewards(self) -> Rewards:
        return self.settings.rewards

    @property
    def view(self) -> Any:
        """What the decision shows before it is clipped, and the run: `sim.stepping.closed_view`, `.replay_stepper`."""
        return self.settings.view(self._runner)

    @property
    def spec(self) -> EnvSpec | None:
        """How it was made, in values that JSON has (`env.text`)."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:
        self._spec = Spec.of(value)

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin a new episode; `options["sessions"]`: of these sessions, by session id or number in the trace."""
        super().reset(seed=seed)
        self._begin(*self.settings.begun(self.np_random, (options or {}).get("sessions")))
        return self._seen()

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self._runner is None or self._runner.slots.book[0, bk.OVER]:
            raise gym.error.ResetNeeded("the episode is over: call reset()")
        self.settings.set_prices(self._runner.slots)
        self._act[0] = int(action)
        self._runner.step(self._act)
        z = self._runner.slots
        obs, info = self._seen()
        return obs, float(z.reward[0]), bool(z.terminated[0]), bool(z.truncated[0]), info

    def action_masks(self) -> NDArray[np.int8]:
        """(actions,) 1 = may be chosen; all 0 once the episode is over, but in placement, where nothing is masked."""
        return self._runner.slots.mask[0].astype(np.int8)

    def clone_state(self) -> EnvState:
        """Copy the episode as it stands; what later resets draw is not part of it. Raises `ResetNeeded`."""
        if self._runner is None or self.episode is None:
            raise gym.error.ResetNeeded("there is no episode yet: call reset()")
        return EnvState(self.episode, self._runner.clone(0))

    def restore_state(self, state: EnvState) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Go on from where an environment of this task and shape was; observation and info of its decision. The same
        state may be restored any number of times, in any environment like it. Raises `UserError`."""
        if state.slot.rows[0].shape != (bk.BOOK,) or not _alike(state, self.settings):
            raise UserError("state", "is of another task or shape", "restore one that such an environment cloned")
        if self.episode is not state.episode:
            self._begin(state.episode, self.settings.runner(1, [state.episode], bk.BY_HAND))
        self._runner.restore(0, state.slot)
        return self._seen()

    def render(self) -> str | None:
        """The run and its workers as a text, if `render_mode` is "ansi"."""
        if self.render_mode is None or self._runner is None:
            return None
        return self.view.text()

    def _begin(self, episode: Episode, runner: Any) -> None:
        self.episode, self._runner = episode, runner

    def _seen(self) -> tuple[NDArray[np.float32], dict[str, Any]]:
        return self._runner.slots.obs[0].copy(), info_of(self._runner.slots)


def _alike(state: EnvState, settings: Settings) -> bool:
    slots = state.slot.runner.slots
    return slots.obs.shape[1:] == settings.observation_space.shape and (
        (state.episode.reference is None) == (settings.task != "eviction"))


def check_render(mode: str | None) -> str | None:
    """Raise `UserError` for a way of rendering that there is not."""
    if mode not in (None, *RENDERS):
        raise UserError("render_mode", f"is {mode!r}", f"choose None or one of {', '.join(RENDERS)}")
    return mode
