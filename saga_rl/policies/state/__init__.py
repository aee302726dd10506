"""What a scheduler knows and learns online: `chains` (each agent's context), `tables` (tools and agent types),
`service` (what tenants had), `agent_fair_share`. The same compiled functions in simulator and engine. Imports no other
room."""
