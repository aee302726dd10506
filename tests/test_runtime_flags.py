"""Mistakes on the command line: told at once, and in words of this command."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.main import get_command

from saga_rl.cli.serve import register
from saga_rl.errors import UserError
from saga_rl.runtime.config.settings import policies_of
from saga_rl.runtime.launch import flags as fl


def test_our_own_flags_are_those_of_the_command() -> None:
    app = typer.Typer(add_completion=False)
    register(app)
    names = {name for p in get_command(app).params for name in p.opts if name.startswith("--")}
    assert set(fl.OWN) == names


@pytest.mark.parametrize(("words", "message"), [
    (["--polcy", "lru"], "unrecognized arguments: --polcy lru; did you mean --policy?"),
    (["--recrod=x"], "did you mean --record?"),
    (["--qqq"], "it is neither a flag of saga-rl serve nor one of this vLLM"),
    (["--port", "x"], "argument --port: invalid int value: 'x'; see `saga-rl serve --help`"),
])
def test_a_flag_that_nobody_knows_gets_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    parser = argparse.ArgumentParser(prog="another")
    parser.add_argument("--port", type=int)
    with pytest.raises(UserError) as e:
        fl.parsed(lambda: parser.parse_args(words))
    assert message in str(e.value) and "\n" not in str(e.value)
    assert capsys.readouterr().err == ""
    assert fl.parsed(lambda: parser.parse_args(["--port", "1"])).port == 1


@pytest.mark.parametrize("form", [["--port", "{}"], ["--port={}"]])
def test_a_port_in_use_is_told_at_once(form: list[str]) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(1)
        words = [word.format(s.getsockname()[1]) for word in form]
        with pytest.raises(UserError, match="is in use"):
            fl.check_port_in(["--host", "127.0.0.1", *words])
        fl.check_port_in([*words, "--headless"])
        fl.check_port_in([*words, "--uds", "/x"])
    fl.check_port_in(["--host", "127.0.0.1", *words])


@pytest.mark.parametrize("name", ["/nope/mine", "./nope", "~/nope"])
def test_a_folder_that_is_not_there_is_no_unknown_name(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: does not exist; name a checkpoint's folder, or one of: "):
        policies_of(name)
    with pytest.raises(UserError, match="there is no policy named 'nope'"):
        policies_of("nope")


def test_a_recording_in_use_names_who_uses_it(tmp_path: Path) -> None:
    record = str(tmp_path / "served.parquet")
    code = (f"import sys; from saga_rl.runtime.launch.flags import held\n"
            f"with held({record!r}): print('held', flush=True); sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"is in use by process {other.pid}, which records there"), fl.held(record):
            pass
    finally:
        other.communicate("")
    with fl.held(record):
        assert list(tmp_path.iterdir()) == [tmp_path / "served.parquet.lock"]
    assert list(tmp_path.iterdir()) == []


def test_answers_say_what_was_cached_unless_the_user_says_otherwise() -> None:
    for words, on in (([], True), (["--no-enable-prompt-tokens-details"], False)):
        args = SimpleNamespace(enable_prompt_tokens_details=False, shutdown_timeout=0)
        fl.defaults(args, words)
        assert args.enable_prompt_tokens_details is on
