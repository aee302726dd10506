"""What all parts of the adapter share: `settings`, vLLM `versions`, the `clock`, what is `emulated`, names that vLLM
knows us by (`ours`), and what keeps a server alive (`safe`). Imports no other part."""

from saga_rl.moved import names_in

__getattr__ = names_in("saga_rl.runtime.config", "saga_rl.runtime.config.settings")
