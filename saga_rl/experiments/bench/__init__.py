"""`saga-rl bench`: recorded sessions against real vLLM servers, arm by arm, and what an operator would choose between.

`settings` and `arms` say what is compared, `material` which sessions are played, `demand` how much KV they want;
`servers`, `router` and `fleet` keep what an arm needs running, `play` plays one run, `measure` all of them into a
`journal`; `judge`, `tables`, `pictures` and `page` show what came out. Imports nothing of vLLM: servers are processes.
"""
