"""Learning: `data/` (decisions as datasets), `offline/` (learners on them), `search/` (whole policies by simulated
runs), `online/` (Stable-Baselines3), `judge/` (is a checkpoint better?). `network`, `cards`, `tracking` and `script`
are shared by them. May import environments, experiments and everything below."""
