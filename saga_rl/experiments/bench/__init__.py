"""`saga-rl bench`: recorded sessions against real vLLM servers, arm by arm, and what an operator would choose between.

`settings` and `arms` say what is compared, `material` which sessions are played, `demand` how much KV they want;
`servers`, `router` and `server_pool` keep what an arm needs running, `play` plays one run, `measure` is the backend
that plays them all, `record` what the folder holds; `judge`, `tables`, `pictures` and `output` show what came out.
Imports nothing of vLLM: servers are processes.
"""
