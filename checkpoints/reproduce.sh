#!/usr/bin/env bash
# Reproduce checkpoints/eviction: generate, split, collect, train, and evaluate on held-out sessions.
# Run it from the root of the project. Set BIN to the folder of the interpreter, WORK to where data may go, OUT to write
# the checkpoint elsewhere, EVALUATE=0 to skip the last part.
set -euo pipefail
BIN=${BIN:-.venv/bin}
WORK=${WORK:-runs/checkpoint}
OUT=${OUT:-checkpoints/eviction}
EVALUATE=${EVALUATE:-1}
POPULATION=16
mkdir -p "$WORK"

workload() { # NAME GENERATOR OPTION...
    "$BIN/saga-rl" trace generate "$2" --seed 11 "${@:3}" -o "$WORK/$1.parquet"
    "$BIN/saga-rl" trace split "$WORK/$1.parquet" -o "$WORK/$1" --fractions train=.6,test=.4 --seed 1
}
workload swe swe-bench --sessions 120 --max-context 65536
workload web webarena --sessions 200 --max-context 65536
workload burst burstgpt --sessions 120 --max-context 65536
workload swe-hitl swe-bench --sessions 120 --max-context 65536 --hitl-share 0.1
workload web-hitl webarena --sessions 200 --max-context 65536 --hitl-share 0.1
workload burst-hitl burstgpt --sessions 120 --max-context 65536 --hitl-share 0.1

"$BIN/python" training/collect.py "$WORK"/{swe,web,burst,swe-hitl,web-hitl,burst-hitl}/train.parquet \
    --pressure 1.25,1.75,2.5 --population $POPULATION --sessions 40 --record lru,saga+ \
    --behaviour lru-protect,wa-lru,belady --epsilon 0.1 --max-decisions 1500 --max-rows 32 --seed 1 \
    --out "$WORK/eviction-v0" --overwrite
"$BIN/python" training/train_offline.py "$WORK/eviction-v0" --out "$OUT" --run-dir "$WORK" --algo rank \
    --epochs 16 --batch 256 --lr 3e-3 --seed 1 --note "the whole pipeline, data included: checkpoints/reproduce.sh"
[ "$EVALUATE" = 0 ] && exit 0
evaluate() { # NAME...
    for name in "$@"; do
        "$BIN/python" training/evaluate.py "$OUT" "$WORK/$name/test.parquet" --pressure 1.25,1.75,2.5 \
            --population $POPULATION --seeds 5 --open-seeds 2 --out "$WORK/evaluate-$name"
    done
}
evaluate swe web burst & # one core each
evaluate swe-hitl web-hitl burst-hitl
wait $!
{
    echo "# checkpoints/eviction on held-out sessions (simulated)"
    echo
    echo "Written by \`checkpoints/reproduce.sh\`: $POPULATION sessions alive at once, one worker, 5 paired arrangements."
    for name in swe web burst swe-hitl web-hitl burst-hitl; do
        echo
        sed "1s/.*/## $name/" "$WORK/evaluate-$name/evaluation.md"
    done
} > "$(dirname "$OUT")/EVALUATION.md"
