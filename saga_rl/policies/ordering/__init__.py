"""Ordering: which waiting request is served first. A file a policy; importing this package registers them. Rivals:
`policies.baselines`.

Where preempted requests stand: `fcfs` and `afs` put them ahead of all, as vLLM's FCFS queue does; every other order
leaves them where their key puts them, as vLLM's priority queue does. What put them there (an old session, little
service so far, a tenant that is owed) still holds, and neither a long job nor a tenant should gain by a preemption.
May import `features`, `state` and `registry`.
"""

from saga_rl.policies.ordering import afs, fcfs, session_fcfs  # noqa: F401
