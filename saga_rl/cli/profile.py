"""`saga-rl profile list`, `show` and `memory`. `saga_rl/replay/calibrate.py` adds `fit`, which needs a server."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from saga_rl.errors import UserError
from saga_rl.files import check_target, write_json
from saga_rl.sim.cost.models import GIB, MODELS, RESERVE_GIB, UTILISATION, model_shape, pool

if TYPE_CHECKING:
    from saga_rl.sim.cost.profile import CostProfile

app = typer.Typer(no_args_is_help=True, help="Cost profiles of the simulator: list, show and fit them, size KV pools.")
KV_TYPES = {"auto": None, "fp8": 1.0, "bfloat16": 2.0, "float16": 2.0, "float32": 4.0}
JSON = Annotated[Path | None, typer.Option("--json", help="Write the figures there.")]


def worst_region(profile: CostProfile) -> tuple[str, float] | None:
    """The region with the greatest P95 error of the fit, if the profile tells."""
    errors = profile.provenance.get("error_by_region") or {}
    if not errors:
        return None
    name = max(errors, key=lambda r: errors[r]["p95"])
    return name, errors[name]["p95"]


@app.command("list")
def list_profiles(json_out: JSON = None) -> None:
    """The profiles that ship: for which machine, assumed or fitted, and how well."""
    from saga_rl.sim.cost.profile import load_profile, profile_names

    check_target(json_out)
    table = Table(title="cost profiles that ship", caption="fitted: P95 relative error of the worst region")
    for head in ("profile", "GPUs", "model", "KV tokens", "constants"):
        table.add_column(head, justify="right" if head == "KV tokens" else "left", no_wrap=True)
    found: list[dict[str, Any]] = []
    for name in profile_names():
        p = load_profile(name)
        worst, where = worst_region(p), p.provenance
        found.append({"name": name, "gpu": where.get("gpu"), "model": where.get("model"), "tp": where.get("tp"),
                      "kv_tokens": p.kv_tokens, "kind": where.get("kind"),
                      "worst_region": worst[0] if worst else None, "worst_p95": worst[1] if worst else None})
        gpus = f"{where['tp']} x {where['gpu'].split('-')[0]}" if "tp" in where else "-"
        kind = str(where.get("kind", "unknown"))
        table.add_row(name, gpus, str(where.get("model", "-")), f"{p.kv_tokens:,}",
                      f"{kind}: {worst[1]:.1%}" if worst else kind)
    if json_out:
        write_json(json_out, found)
    Console().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A profile that ships, or a JSON file.")],
    json_out: JSON = None,
) -> None:
    """One profile: constants, ranges, errors, sources and assumptions."""
    from saga_rl.sim.cost.fit import error_table
    from saga_rl.sim.cost.profile import RANGES, load_profile

    check_target(json_out)
    p = load_profile(name)
    if json_out:
        write_json(json_out, asdict(p))
    out, where = Console(highlight=False), p.provenance
    table = Table(title=f"{p.name}: {where.get('kind', 'unknown')}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for label, value in (("base", f"{p.base_s * 1e3:.4g} ms"),
                         ("a prefill token", f"{p.per_prefill_token_s * 1e6:.4g} us"),
                         ("an attention pair", f"{p.per_attn_s * 1e9:.4g} ns"),
                         ("a token of context", f"{p.per_context_s * 1e9:.4g} ns"),
                         ("a token of KV read", f"{p.per_kv_token_s * 1e9:.4g} ns"),
                         ("a decoding sequence", f"{p.per_seq_s * 1e6:.4g} us"),
                         ("KV pool", f"{p.kv_tokens:,} tokens"), ("batch", f"up to {p.max_batched_tokens:,} tokens"),
                         ("full chunks of cold prompts", f"{p.prefill_tokens_per_s:,.0f} tokens/s")):
        table.add_row(label, value)
    for tokens, seconds in zip(p.batch_tokens, p.batch_s, strict=True):
        table.add_row(f"{tokens:,.0f} tokens in the batch", f"{seconds * 1e3:.4g} ms")
    for key, (low, high) in p.fitted.items():
        table.add_row(f"fitted: {RANGES[key]}", f"{low:,.0f} to {high:,.0f}")
    out.print(table)
    if where.get("error_by_region"):
        out.print(error_table("error of the fit", where["error_by_region"]))
    if where.get("validation"):
        out.print(error_table("against other measurements (+: the profile is slower)", where["validation"],
                              "measurement"))
    for key, value in where.items():
        if key not in ("error_by_region", "validation", "measured"):
            out.print(f"{key}: {value if isinstance(value, str) else json.dumps(value, indent=1)}", markup=False)


@app.command()
def memory(
    model: Annotated[str, typer.Option(help=f"One of: {', '.join(MODELS)}; or the path of a config.json.")],
    gpu_gib: Annotated[float, typer.Option(help="Memory of one GPU, GiB (A100 and H100: 80).")] = 80.0,
    tp: Annotated[int, typer.Option(help="GPUs an instance is split over.")] = 1,
    utilisation: Annotated[float, typer.Option(help="Share of the memory that the engine may take.")] = UTILISATION,
    reserve_gib: Annotated[float, typer.Option(help="Activations, graphs and runtime a GPU, GiB.")] = RESERVE_GIB,
    kv_dtype: Annotated[str, typer.Option(help=f"One of: {', '.join(KV_TYPES)}; auto: the model's.")] = "auto",
    weights_gib: Annotated[float | None, typer.Option(help="Weights of the whole model, where they are quantised.")]
    = None,
    json_out: JSON = None,
) -> None:
    """KV bytes of a token and the KV pool that a model leaves on its GPUs."""
    check_target(json_out)
    if kv_dtype not in KV_TYPES:
        raise UserError(f"--kv-dtype {kv_dtype}", "is unknown", "choose one of: " + ", ".join(KV_TYPES))
    shape = model_shape(model)
    room = pool(shape, gpu_gib, tp, utilisation=utilisation, reserve_gib=reserve_gib,
                kv_dtype_bytes=KV_TYPES[kv_dtype], weights_gib=weights_gib)
    whole = shape.kv_bytes_per_token(1, KV_TYPES[kv_dtype])
    if json_out:
        write_json(json_out, {"model": shape.name, "parameters": shape.parameters, "tp": tp, "gpu_gib": gpu_gib,
                              "kv_bytes_per_token": whole, "kv_bytes_per_token_per_gpu": room.kv_per_token,
                              "weights_bytes_per_gpu": room.weights, "usable_bytes_per_gpu": room.usable,
                              "reserve_bytes_per_gpu": room.reserve, "kv_tokens": room.tokens})
    table = Table(title=f"{shape.name} on {tp} x {gpu_gib:g} GiB")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for label, value in (("parameters", f"{shape.parameters:,}"), ("KV of a token", f"{whole:,.0f} B"),
                         ("KV of a token, each GPU", f"{room.kv_per_token:,.0f} B"),
                         ("usable, each GPU", f"{room.usable / GIB:.1f} GiB"),
                         ("weights, each GPU", f"{room.weights / GIB:.1f} GiB"),
                         ("reserve, each GPU", f"{room.reserve / GIB:.1f} GiB"),
                         ("KV pool of the instance", f"{room.tokens:,} tokens")):
        table.add_row(label, value)
    Console().print(table)


def register(parent: typer.Typer) -> None:
    """Add `profile` to the program."""
    parent.add_typer(app, name="profile")
