"""saga-rl: a policy-learning scheduler for AI-agent inference."""

from saga_rl.compile_cache import use_cache_dir

__version__ = "0.1.0"

use_cache_dir()
