"""A LangGraph agent that sends its thread's name, so that compaction and a second API server do not cut the session."""

from langgraph.prebuilt import create_react_agent


def langgraph_agent(model, tools, **more):
    """model: a ChatOpenAI. Invoke it with `{"configurable": {"thread_id": NAME}}`."""
    def named(state, runtime):
        from langgraph.config import get_config

        thread = get_config()["configurable"]["thread_id"]
        return model.bind_tools(tools).bind(extra_headers={"X-Session-ID": thread})

    return create_react_agent(named, tools, **more)
