"""A gateway's CSV (time, seconds, run, agent, tool, prompt, answer) as lines that `saga-rl trace import` reads."""

import csv
import json
import sys
from datetime import datetime, timedelta

for row in csv.DictReader(sys.stdin):
    sent = datetime.fromisoformat(row["time"])
    call = {
        "session": row["run"],                       # one task of one agent, from its first call to its last
        "agent": row["agent"] or "main",             # a sub-agent has a name of its own
        "in": int(row["prompt"]),                    # tokens
        "out": int(row["answer"]),
        "t_req": sent.isoformat(),                   # when the request was sent
        "t_end": (sent + timedelta(seconds=float(row["seconds"]))).isoformat(),
    }
    if row["tool"]:
        call["tools"] = [{"name": row["tool"]}]      # its seconds are taken from the times around it
    print(json.dumps(call))
