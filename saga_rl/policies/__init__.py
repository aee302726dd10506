"""Policies for four decisions: eviction, placement, ordering, admission. Nothing here knows a simulator or vLLM.

A policy is a compiled score over one feature row (`base`). `features/` makes the rows, from what `state/` keeps of
chains, tools and tenants; each decision has a folder with what presets, checkpoints and SAGA use; `baselines/` holds
rivals and references; `learned/` is checkpoints and networks. `registry` finds a policy by name, `presets` a set of
four. `constraints` stands outside every score. Imports nothing of the other rooms.
"""
