"""The paper's own values, and nothing else: Guo, Wu, Yiu, "SAGA: Workflow-Atomic Scheduling for AI Agent Inference on
GPU Clusters", HPDC 2026, arXiv 2605.00528; its abstract and evaluation, as its tables and figures print them."""

SOURCE = "SAGA, HPDC 2026, arXiv 2605.00528"

FASTER, MORE_USEFUL = 1.64, 1.22
"""The abstract: completion time and useful memory, over vLLM with prefix caching and affinity, geometric mean."""
TCT_S = {  # task completion time, s: SWE-bench, WebArena
    "vLLM 0.6.0, no prefix caching": (612.3, 178.4), "vLLM 0.15.1, prefix caching and affinity": (352.1, 127.3),
    "SGLang 0.5.8": (387.2, 138.7), "Llumnix": (498.1, 156.2), "TensorRT-LLM with Scaffolding": (324.6, 118.9),
    "KVFlow": (298.4, 108.2), "SAGA": (203.4, 82.1)}
USEFUL_KV = {"vLLM, prefix caching and affinity": (0.587, 0.612), "SAGA": (0.713, 0.746)}
"""Share of KV memory that holds useful cache: SWE-bench, WebArena."""
OVER_BELADY = {"LRU": (2.84, 2.12), "prefix LRU": (1.97, 1.74), "WA-LRU": (1.31, 1.28)}
"""Tokens prefilled again over Bélády's: SWE-bench, WebArena."""
ABLATION_S = {"SAGA": 203.4, "no WA-LRU": 312.8, "no TTL": 289.1, "no prefetch": 241.6, "no affinity": 398.2,
              "no stealing": 267.3, "no AFS": 218.7}
"""SWE-bench, s."""
IN_TIME = {"vLLM": {"heavy": 0.894, "medium": 0.721, "light": 0.432, "all": 0.673},
           "SAGA": {"heavy": 0.991, "medium": 0.994, "light": 0.987, "all": 0.992}}
"""Share of tasks done within 1.5 x their expected time, by class of tenant."""
OVERHEAD_MS = {"coordinator cycle": 12.3, "AFS": 3.1, "AEG construction": 45.0, "migration": 230.0}
"""Means."""
LATENCY_CV_S = {0.5: 195.0, 1.0: 203.0, 1.5: 219.0, 2.0: 241.0, 3.0: 298.0}
"""SAGA's completion time by the coefficient of variation of tool latency, s."""
PER_MINUTE = {"SAGA": 8.7, "breadth-first batching": 12.4}
"""Peak throughput, tasks a minute."""
SCALING = 6.4
"""Throughput on 64 GPUs over that on 8."""
UTILISATION = {"without stealing": (0.23, 0.94), "with stealing": (0.68, 0.79)}
"""Least and most utilised worker."""
RATE_PER_MIN = 8.0
TASKS = {"swe-bench": 500, "webarena": 812}
"""Of BurstGPT the paper says only the rates."""
WORKERS = 16
"""Of four A100 each."""
