"""Figures of a closed-loop run: `metrics` (keys: docs/reference/results.md) and `fairness` between tenants. May import
`engine`."""
