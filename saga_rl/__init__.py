"""saga-rl: a policy-learning scheduler for AI-agent inference."""

from saga_rl.compile_cache import use_cache_dir
from saga_rl.moved import watch_imports

__version__ = "0.1.0"

use_cache_dir()
watch_imports()
