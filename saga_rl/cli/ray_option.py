"""The option `--ray` of commands whose work a cluster can do."""

from __future__ import annotations

from typing import Annotated

from typer import Option

Ray = Annotated[str, Option("--ray", metavar="ADDRESS", help="Use the CPUs of this Ray cluster in place of processes "
                            "here: HOST:PORT, or auto.")]
