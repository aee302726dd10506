"""saga-rl: a policy-learning scheduler for AI-agent inference."""

__version__ = "0.1.0"
