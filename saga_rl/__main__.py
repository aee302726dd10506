"""`python -m saga_rl`: the command `saga-rl`."""

from saga_rl.cli import main

main()
