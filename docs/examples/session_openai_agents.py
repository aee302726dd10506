"""A name for runs of the OpenAI Agents SDK: `Runner.run(agent, task, run_config=named("task-17"))`."""

from agents import ModelSettings, RunConfig


def named(session, parent=None):
    """parent: the session whose sub-agent this run is."""
    headers = {"X-Session-ID": session, **({"X-Parent-Session-Id": parent} if parent else {})}
    return RunConfig(model_settings=ModelSettings(extra_headers=headers))
