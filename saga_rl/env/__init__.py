"""Gymnasium environments over the simulator. Importing this package registers them, each for `gymnasium.make` and, many
in one compiled call, for `gymnasium.make_vec`:

- `saga_rl/Eviction-v0`: open-loop replay, which chain loses blocks;
- `saga_rl/Placement-v0`: closed-loop cluster, which worker serves a request;
- `saga_rl/Ordering-v0`, `saga_rl/Admission-v0`, `saga_rl/Joint-v0`: closed-loop, who enters from a worker's queue;
- `saga_rl/Scheduler-v0`: closed-loop, all of these decisions in one run;
- named tasks, such as `saga_rl/Swe-P1-v0`: `saga_rl.env.tasks`.

`gymnasium.make("saga_rl.env:saga_rl/Eviction-v0", ...)` imports and makes in one call; options:
`saga_rl.env.settings.Settings`.
"""

from typing import Any

from gymnasium.envs.registration import register, registry

from saga_rl.env.tasks import NAMED

EVICTION_ID, PLACEMENT_ID, ORDERING_ID = "saga_rl/Eviction-v0", "saga_rl/Placement-v0", "saga_rl/Ordering-v0"
ADMISSION_ID, JOINT_ID, SCHEDULER_ID = "saga_rl/Admission-v0", "saga_rl/Joint-v0", "saga_rl/Scheduler-v0"
IDS = {"eviction": EVICTION_ID, "placement": PLACEMENT_ID, "ordering": ORDERING_ID, "admission": ADMISSION_ID,
       "joint": JOINT_ID, "scheduler": SCHEDULER_ID}
"""By task, see `saga_rl.env.settings.KINDS`."""
SINGLE, VECTOR = "saga_rl.env.single:TaskEnv", "saga_rl.env.vector:TaskVectorEnv"


def _gone(name: str) -> Any:
    def refuse(**options: Any) -> None:
        from saga_rl.errors import UserError

        raise UserError(f"saga_rl/{name}Vec-v0", "is gone: one id makes one environment or many",
                        f'call gymnasium.make_vec("saga_rl/{name}-v0", num_envs, ...)')

    return refuse


if EVICTION_ID not in registry:
    for _task, _id in IDS.items():
        register(_id, entry_point=SINGLE, vector_entry_point=VECTOR, kwargs={"task": _task})
        register(_id.replace("-v0", "Vec-v0"), entry_point=_gone(_task.capitalize()),
                 vector_entry_point=_gone(_task.capitalize()))
    for _id, _options in NAMED.items():
        register(_id, entry_point=SINGLE, vector_entry_point=VECTOR, kwargs=_options)
