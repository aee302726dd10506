"""`python -m saga_rl`: the command `saga-rl`."""

from saga_rl.cli.main import main

main()
