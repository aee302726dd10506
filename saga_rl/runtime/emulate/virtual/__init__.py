"""vLLM's real scheduler, ours in it, in virtual time: no model, no process, no sleep.

N engines of a cost profile, each the installed vLLM's `AsyncScheduler` (or the synchronous one) with its real KV
manager, driven as `EngineCore.step_with_batch_queue` drives it; our router before them; a trace played as
`saga-rl replay` plays it. A run is deterministic and says what the runtime does with the information that it has in
service, so what the simulator foretells can be held against it (`benchmarks/emulation.py`,
docs/explanation/fidelity.md).

    from saga_rl.runtime.emulate.virtual import VirtualConfig, play
    played = play(trace, VirtualConfig(SimConfig(workers=2, population=24, end_hint=False)), preset("likely"))
May import the rest of `runtime`.
"""

from saga_rl.runtime.emulate.virtual.cluster import Played, VirtualConfig, play

__all__ = ["Played", "VirtualConfig", "play"]
