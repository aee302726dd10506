"""Learned policies: `checkpoint` folders and their `checkpoint_checks`, the network (`mlp`, `native`), what is settled
ahead of it (`settled`), its place in the registry (`scorers`), and its `guard` and `drift` detector in service. May
import `features`, the decisions' folders and `registry`; of these none imports it, but `registry` by name."""
