"""The feature rows of the four seams: the one place where observations are made, a file a seam.

Simulator, environments and vLLM adapter call these functions, so a policy sees in service what it was trained on. The
hash of its seam's code is written into every checkpoint (`feature_hash`). Rows are float64; seconds and tokens enter
learned policies as log(1 + x), raw values stay beside them for the heuristics. The ORACLE column is NaN for every
policy that does not declare `oracle=True`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from saga_rl.policies.features.admission import *  # noqa: F403
from saga_rl.policies.features.admission import ADMISSION
from saga_rl.policies.features.eviction import *  # noqa: F403
from saga_rl.policies.features.eviction import EVICTION
from saga_rl.policies.features.ordering import *  # noqa: F403
from saga_rl.policies.features.ordering import ORDERING
from saga_rl.policies.features.placement import *  # noqa: F403
from saga_rl.policies.features.placement import PLACEMENT
from saga_rl.policies.features.pools import *  # noqa: F403
from saga_rl.source_hash import code_hash

COLUMNS = {"eviction": len(EVICTION), "placement": len(PLACEMENT), "ordering": len(ORDERING),
           "admission": len(ADMISSION)}
"""Width of a row of each seam."""


@cache
def feature_hash(*seams: str) -> str:
    """SHA-256 over the code, less comments and docstrings, that makes the rows of these seams (none: of all); a
    checkpoint of other code is refused."""
    here = Path(__file__).parent
    files = [here / f"{seam}.py" for seam in seams or COLUMNS] + [here / "pools.py"]
    return code_hash(repr([tables_hash()]), *(f.read_text(encoding="utf-8") for f in files))


@cache
def tables_hash() -> str:
    """SHA-256 over the code of what is learned in service: chains and tables."""
    here = Path(__file__).parents[1]
    return code_hash(*((here / name).read_text(encoding="utf-8") for name in ("chains.py", "tables.py")))
