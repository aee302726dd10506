"""What is read of a server's processes while it serves: resident memory, CPU time, and the slope of a line."""

from __future__ import annotations

import numpy as np
import psutil

Sample = dict[str, tuple[float, float]]


def read(pid: int) -> Sample:
    """(MiB resident, seconds of CPU so far) by process: the server, and each that it started, by name and number."""
    out: Sample = {}
    process = psutil.Process(pid)
    for p in [process, *process.children(recursive=True)]:
        try:
            times = p.cpu_times()
            title = next((w for w in p.cmdline() if "EngineCore" in w or "APIServer" in w), "") or p.name()
            out[f"{title.replace('VLLM::', '')[:24].strip()} {p.pid}"] = (p.memory_info().rss / 2**20,
                                                                        times.user + times.system)
        except psutil.Error:
            continue
    return out


def slope(x: list[float], y: list[float]) -> float:
    """Units of `y` for one of `x`, by least squares over the second half; NaN for fewer than three points."""
    half = len(x) // 2
    return float(np.polyfit(x[half:], y[half:], 1)[0]) if len(x) - half > 2 else float("nan")


def cores(samples: list[Sample], seconds: list[float]) -> float:
    """CPU cores that all processes used between the first and the last sample."""
    first, last = samples[0], samples[-1]
    used = sum(cpu - first.get(name, (0.0, 0.0))[1] for name, (_, cpu) in last.items())
    return used / max(seconds[-1] - seconds[0], 1e-9)
