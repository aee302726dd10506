"""Gymnasium environments over the simulator. Importing this package registers them:

- `saga_rl/Eviction-v0`: open-loop replay, which chain loses blocks (`saga_rl.env.eviction`);
- `saga_rl/EvictionVec-v0`: many of them in one compiled call (`saga_rl.env.vector`; `gymnasium.make_vec`);
- `saga_rl/Placement-v0`: closed-loop cluster, which worker serves a request (`saga_rl.env.placement`);
- `saga_rl/Ordering-v0`, `saga_rl/Admission-v0`, `saga_rl/Joint-v0`: closed-loop, who enters from a worker's queue
  (`saga_rl.env.queue`);
- `saga_rl/Scheduler-v0`: closed-loop, all of these decisions in one run (`saga_rl.env.scheduler`);
- `saga_rl/PlacementVec-v0`, `saga_rl/OrderingVec-v0`, `saga_rl/AdmissionVec-v0`, `saga_rl/JointVec-v0`,
  `saga_rl/SchedulerVec-v0`: many of these in one compiled call (`saga_rl.env.closed_vector`; `gymnasium.make_vec`).

`gymnasium.make("saga_rl.env:saga_rl/Eviction-v0", ...)` imports and makes in one call.
"""

from gymnasium.envs.registration import register, registry

EVICTION_ID, EVICTION_VEC_ID, PLACEMENT_ID = "saga_rl/Eviction-v0", "saga_rl/EvictionVec-v0", "saga_rl/Placement-v0"
ORDERING_ID, ADMISSION_ID, JOINT_ID = "saga_rl/Ordering-v0", "saga_rl/Admission-v0", "saga_rl/Joint-v0"
SCHEDULER_ID = "saga_rl/Scheduler-v0"
PLACEMENT_VEC_ID, ORDERING_VEC_ID = "saga_rl/PlacementVec-v0", "saga_rl/OrderingVec-v0"
ADMISSION_VEC_ID, JOINT_VEC_ID = "saga_rl/AdmissionVec-v0", "saga_rl/JointVec-v0"
SCHEDULER_VEC_ID = "saga_rl/SchedulerVec-v0"

if EVICTION_ID not in registry:
    register(EVICTION_ID, entry_point="saga_rl.env.eviction:EvictionEnv")
    register(EVICTION_VEC_ID, vector_entry_point="saga_rl.env.vector:EvictionVectorEnv")
    register(PLACEMENT_ID, entry_point="saga_rl.env.placement:PlacementEnv")
    register(ORDERING_ID, entry_point="saga_rl.env.queue:OrderingEnv")
    register(ADMISSION_ID, entry_point="saga_rl.env.queue:AdmissionEnv")
    register(JOINT_ID, entry_point="saga_rl.env.queue:JointEnv")
    register(SCHEDULER_ID, entry_point="saga_rl.env.scheduler:SchedulerEnv")
    for _name, _cls in ((PLACEMENT_VEC_ID, "PlacementVectorEnv"), (ORDERING_VEC_ID, "OrderingVectorEnv"),
                        (ADMISSION_VEC_ID, "AdmissionVectorEnv"), (JOINT_VEC_ID, "JointVectorEnv"),
                        (SCHEDULER_VEC_ID, "SchedulerVectorEnv")):
        register(_name, vector_entry_point=f"saga_rl.env.closed_vector:{_cls}")
