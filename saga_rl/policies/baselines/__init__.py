"""Policies that no preset and no checkpoint uses: rivals from the literature and references that know the future.

They obey the same contract (`policies.base`) and pass the same tests as ours. May import what the decisions' own
folders hold, never the other way round.
"""
