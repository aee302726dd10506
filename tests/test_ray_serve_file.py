"""`saga-rl serve --ray FILE`: what is filled into the file, and what is refused before Ray starts."""

from __future__ import annotations

import copy
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from saga_rl.errors import UserError
from saga_rl.runtime.config.emulated import Settings
from saga_rl.runtime.config.settings import SagaConfig
from saga_rl.runtime.ray import serve_file
from saga_rl.runtime.ray.serve_file import completed, read, require_ray, require_room, wanted

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "ray_emulated.yaml"
DEVICE = Settings("h100-llama3.1-8b-tp1")


def example() -> dict[str, Any]:
    return yaml.safe_load(EXAMPLE.read_text())


def model_of(content: dict[str, Any]) -> dict[str, Any]:
    return content["applications"][0]["args"]["llm_configs"][0]


def bare() -> dict[str, Any]:
    """The documentation's file without anything of ours."""
    content = example()
    model = model_of(content)
    del model["engine_kwargs"]["scheduler_cls"], model["engine_kwargs"]["additional_config"], model["runtime_env"]
    del model["deployment_config"]["request_router_config"], model["placement_group_config"]
    return content


def test_a_bare_file_becomes_the_one_in_the_documentation() -> None:
    before, filled = bare(), completed(bare(), "x", SagaConfig(policy="likely"), DEVICE)
    told, wants = model_of(filled), model_of(example())
    assert told["engine_kwargs"] == wants["engine_kwargs"]
    assert told["placement_group_config"] == wants["placement_group_config"]
    assert json.loads(told["runtime_env"]["env_vars"]["SAGA_RL_EMULATE"])["profile"] == DEVICE.profile
    router, kwargs = (m["deployment_config"]["request_router_config"]["request_router_kwargs"] for m in (told, wants))
    assert router == {k: v for k, v in kwargs.items() if k != "max_num_seqs"}, "the file does not name it"
    assert before == bare(), "what was given is not changed"


def test_what_a_file_says_stays() -> None:
    content = example()
    model_of(content)["deployment_config"]["request_router_config"]["request_router_class"] = "mine.Router"
    filled = completed(content, "x", SagaConfig(), None)
    assert model_of(filled)["engine_kwargs"]["additional_config"]["saga"] == {"policy": "likely"}
    assert model_of(filled)["deployment_config"] == model_of(content)["deployment_config"]
    assert completed(filled, "x", SagaConfig(), None) == filled, "filled in once, there is nothing more to fill in"


def test_flags_win_over_the_file_and_reach_engines_and_router() -> None:
    content = example()
    del model_of(content)["deployment_config"]["request_router_config"]
    model_of(content)["engine_kwargs"] |= {"max_num_seqs": 32}
    told = model_of(completed(content, "x", SagaConfig(policy="saga", expiry_s=60.0), None))
    ours = {"policy": "saga", "expiry_s": 60.0}
    assert told["engine_kwargs"]["additional_config"] == {"saga": ours}
    assert told["deployment_config"]["request_router_config"]["request_router_kwargs"] == {
        "saga": ours, "max_num_seqs": 32}


def test_stock_is_ray_as_it_is() -> None:
    assert completed(bare(), "x", SagaConfig(policy="stock"), None) == bare()


def broken(change: Any) -> dict[str, Any]:
    content = copy.deepcopy(example())
    change(content)
    return content


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c.pop("applications"), "x: has no applications"),
    (lambda c: c["applications"][0].pop("args"), "x, applications[0].args.llm_configs: names no models"),
    (lambda c: c["applications"][0]["args"].update(llm_configs=["m.yaml"]), "llm_configs[0]: is not an object"),
    (lambda c: model_of(c)["engine_kwargs"].update(scheduler_cls="other.Scheduler"),
     "engine_kwargs.scheduler_cls: is 'other.Scheduler', and a policy needs ours"),
    (lambda c: model_of(c)["engine_kwargs"].update(additional_config={"saga": {"polcy": "lru"}}),
     "choose one of: policy"),
    (lambda c: model_of(c)["engine_kwargs"].update(additional_config={"saga": {"policy": "saga-"}}),
     "choose one of: saga"),
])
def test_what_is_wrong_with_a_file_is_told_by_its_place(change: Any, message: str) -> None:
    with pytest.raises(UserError) as e:
        completed(broken(change), "x", SagaConfig(), None)
    assert message in str(e.value) and "Traceback" not in str(e.value)


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    for text, message in (("a: [", "is not YAML"), ("- 1", "is not an object")):
        (tmp_path / "f.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            read(tmp_path / "f.yaml")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.yaml")


@pytest.mark.parametrize(("found", "message"), [("", "is not installed"), ("2.40.0", "was not tried")])
def test_no_ray_and_a_ray_that_was_not_tried_are_told_at_once(found: str, message: str,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_file, "version", lambda name: found)
    monkeypatch.setattr(serve_file, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=message):
        require_ray(False)
    if found:
        require_ray(True)


def test_an_address_where_nobody_answers_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # bound and not listening: refused
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{s.getsockname()[1]}")
        with pytest.raises(UserError, match="no cluster answers there"):
            require_room(example(), "x")
    for word in ("", "nowhere", "ray://nowhere:x"):
        monkeypatch.setenv("RAY_ADDRESS", word)
        if word:
            with pytest.raises(UserError, match="no cluster answers there"):
                require_room(example(), "x")
        else:
            require_room(example(), "x")  # Ray starts one here


def test_a_cluster_without_room_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    content = example()
    assert wanted(content) == {"CPU": 2.0, "GPU": 0.0}
    del model_of(content)["placement_group_config"]
    model_of(content)["engine_kwargs"]["tensor_parallel_size"] = 4
    assert wanted(content)["GPU"] == 8.0
    monkeypatch.setattr(serve_file, "ASK", "import json; print(json.dumps({'CPU': 16.0, 'GPU': 4.0}))")
    with socket.create_server(("127.0.0.1", 0)) as s:
        monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{s.getsockname()[1]}")
        with pytest.raises(UserError, match="asks for 8 GPUs, and the cluster has 4"):
            require_room(content, "x")
        require_room(example(), "x")


@pytest.mark.parametrize(("words", "message"), [
    ([], "wants a model, or --ray FILE"), (["m", "--ray", "f.yaml"], "got a model and --ray"),
    (["--ray", "f.yaml", "--record", "t.parquet"], "writes one server's trace"),
])
def test_the_command_takes_a_model_or_a_file(words: list[str], message: str) -> None:
    from saga_rl.cli.main import app

    result = CliRunner().invoke(app, ["serve", *words])
    assert isinstance(result.exception, UserError) and message in str(result.exception)


def test_ray_is_started_on_the_filled_in_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, started = tmp_path / "mine.yaml", []
    path.write_text(yaml.safe_dump(bare()))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(serve_file, "require_ray", lambda allow: None)
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    serve_file.run(path, SagaConfig(policy="auto"), DEVICE)
    ((*words, name),) = started
    assert words == [sys.executable, "-m", "ray.serve.scripts", "run"]
    assert yaml.safe_load(Path(name).read_text()) == completed(bare(), "x", SagaConfig(policy="auto"), DEVICE)
