"""Decisions as datasets: `rollouts` plays episodes, `collect` logs decisions, `dataset` keeps them as Minari does.
May import `env`, `sim`, `aeg` and `policies`."""
