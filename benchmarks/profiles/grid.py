"""The iterations that a profile is fitted to, by region. All lie within what was measured and within the KV pool."""

from __future__ import annotations

from collections.abc import Iterator

from kernels import Instance, Work

CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
CONTEXTS = (256, 512, 1024, 2048, 4096, 6144, 8192, 12288, 15360)
DECODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
KV = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
MIXED_DECODES = (1, 4, 16, 64, 128, 256)
MIXED_KV = (512, 2048, 8192, 32768)
MIXED_CHUNKS = (64, 256, 512, 1024, 2048, 4096, 7680)
MIXED_CONTEXTS = (0, 2048, 8192)
LARGE = 16
"""Decode batches above it are "large"."""
KNOTS = (1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)
MOST_TOKENS = 8192
"""Tokens in an iteration: vLLM's default budget for a server on these GPUs, and where the A100's products end."""

REGIONS = ("prefill", "prefill with context", "decode, small batch", "decode, large batch", "mixed")


def works(instance: Instance, pool: int) -> Iterator[tuple[str, Work]]:
    """Region and iteration, in a fixed order."""
    longest, decodes = instance.attention.longest, instance.attention.decode
    for n in CHUNKS:
        yield "prefill", Work(chunks=((n, 0),))
    for many in (2, 4, 8, 16):
        for n in (64, 256, 512, 1024, 2048):
            if many * n <= MOST_TOKENS and instance.attention.cold_batch(many, n) is not None:
                yield "prefill", Work(prompts=(many, n))
    for n in CHUNKS:
        for c in CONTEXTS:
            if n + c <= longest:
                yield "prefill with context", Work(chunks=((n, c),))
    for b in DECODES:
        for kv in KV:
            if kv <= decodes[b][0][-1] and b * kv <= pool:
                yield f"decode, {'large' if b > LARGE else 'small'} batch", Work(decode=(b, kv))
    for b in MIXED_DECODES:
        for kv in MIXED_KV:
            for n in MIXED_CHUNKS:
                for c in MIXED_CONTEXTS:
                    if (kv <= decodes[b][0][-1] and n + c <= longest and n + b <= MOST_TOKENS
                            and b * kv + n + c <= pool):
                        yield "mixed", Work(chunks=((n, c),), decode=(b, kv))
