#!/usr/bin/env bash
# Reproduce the checkpoints: generate and split sessions, then for `eviction` collect and train, for `joint` (order,
# admission, eviction) search on whole simulated runs, and evaluate on held-out sessions.
# Run it from the root of the project. Set BIN to the folder of the interpreter, WORK to where data may go, OUT to write
# the checkpoints elsewhere, PARTS to make only some of them, EVALUATE=0 to skip the report, DATA to the folder of recorded
# collections to have them in it. Stopped searches go on from their journals in WORK.
set -euo pipefail
BIN=${BIN:-.venv/bin}
WORK=${WORK:-runs/checkpoint}
OUT=${OUT:-checkpoints}
PARTS=${PARTS:-eviction joint joint-hidden}
EVALUATE=${EVALUATE:-1}
POPULATION=16
TIGHT=300000,300000,260000,260000 # KV tokens a worker, for the four workloads with humans
COSTS=(--profile a100-llama3-70b-tp4) # the assumed ones, which these checkpoints were found with
BESIDE=(--placement saga:theta=100 --ordering session-fcfs --admission reserve-older)
NOTE="the whole pipeline, data included: checkpoints/reproduce.sh"
mkdir -p "$WORK" "$OUT"

workload() { # NAME GENERATOR OPTION...
    "$BIN/saga-rl" trace generate "$2" --seed 11 "${@:3}" -o "$WORK/$1.parquet"
    "$BIN/saga-rl" trace split "$WORK/$1.parquet" -o "$WORK/$1" --fractions train=.6,test=.4 --seed 1
}

if [[ $PARTS == *eviction* ]]; then
    workload swe swe-bench --sessions 120 --max-context 65536
    workload web webarena --sessions 200 --max-context 65536
    workload burst burstgpt --sessions 120 --max-context 65536
    workload swe-hitl swe-bench --sessions 120 --max-context 65536 --hitl-share 0.1
    workload web-hitl webarena --sessions 200 --max-context 65536 --hitl-share 0.1
    workload burst-hitl burstgpt --sessions 120 --max-context 65536 --hitl-share 0.1
    workload hetero hetero --sessions 160 --max-context 65536 --hitl-share 0.05
    workload coding coding --sessions 120
    "$BIN/python" training/collect.py "$WORK"/{swe,web,burst,swe-hitl,web-hitl,burst-hitl,hetero,coding}/train.parquet \
        --pressure 1.25,1.75,2.5 --population $POPULATION --sessions 40 --record lru,saga+ \
        --behaviour lru-protect,wa-lru,belady --epsilon 0.1 --max-decisions 1500 --max-rows 32 --seed 1 \
        --ends "${COSTS[@]}" --out "$WORK/eviction-v0" --overwrite
    "$BIN/python" training/train_offline.py "$WORK/eviction-v0" --out "$OUT/eviction" --run-dir "$WORK" --algo rank \
        --epochs 16 --batch 256 --lr 3e-3 --trust 0.4 --seed 1 "${BESIDE[@]}" --note "$NOTE"
fi
# pools: P1 of each workload (`training/protocol.py` prints it), for ends that nobody announces tighter ones too
search() { # OUT GENERATIONS POPULATIONS KV_TOKENS WORKLOAD... ; ends are announced unless OUT says hidden
    local out=$1 generations=$2 population=$3 kv=$4 seen=("${@:5}")
    local places=("${seen[@]/%/@ends}")
    local trained=() # where it serves better than the eviction that was searched, the set takes the one that was trained
    [[ $out == *hidden ]] && places=("${seen[@]}") && trained=(--trained "eviction=$OUT/eviction")
    "$BIN/python" training/search.py "${places[@]}" "${COSTS[@]}" --validation "$(printf "%s\n" "${seen[@]}" | paste -sd,)" \
        --population "$population" --kv-tokens "$kv" --beside placement=least-sessions --episodes 1 --checks 3 \
        --generations "$generations" --sigma 0.1 --seed 1 "${trained[@]}" --out "$out" --run-dir "$WORK" --note "$NOTE"
}
human=(workload:swe-hitl workload:web-hitl workload:hetero-hitl workload:shift-hitl)
coding=(workload:coding workload:coding) # two thirds of P1's sessions a worker, in as much of its pool, and in less
if [[ " $PARTS " == *" joint "* ]]; then
    search "$OUT/joint" 100 9,10,12,16,9,10,12,12 418096,495680,472400,419104,418096,495680,375680,375680 workload:swe \
        workload:web workload:burst workload:hetero workload:swe@load=.95 workload:web@load=.95 workload:shift@load=.85 \
        workload:shift
fi
if [[ " $PARTS " == *" joint-hidden "* ]]; then
    search "$OUT/joint-hidden" 120 12,12,16,12,12,12,12,16,12,8,8 \
        "504416,399664,398880,387232,387232,$TIGHT,362528,254000" "${human[@]}" workload:shift-hitl@load=.85 \
        "${human[@]}" "${coding[@]}"
fi
[ "$EVALUATE" = 0 ] && exit 0
joint= own= # trained on a recorded collection's own training sessions: not shipped, but shown in the report
specialist() { # NAME KV_TOKENS
    "$BIN/python" training/workload.py "$1" --data "$DATA" -o "$WORK/$1.parquet"
    "$BIN/python" training/collect.py "$WORK/$1.parquet" --kv-tokens "$2" --population $POPULATION --sessions 48 \
        --episodes 3 --record lru,saga+ --behaviour lru-protect,wa-lru,belady --epsilon 0.1 --max-decisions 1500 \
        --max-rows 32 --seed 1 --ends "${COSTS[@]}" --out "$WORK/$1-v0" --overwrite
    "$BIN/python" training/train_offline.py "$WORK/$1-v0" --out "$WORK/own-$1" --run-dir "$WORK" --algo rank \
        --epochs 8 --batch 256 --lr 3e-3 --trust 0.4 --seed 1 "${BESIDE[@]}"
    own=${own:+$own,}$WORK/own-$1
}
together() { # NAME KV_TOKENS GENERATIONS: order, admission and eviction, ends hidden, from the shipped ones on
    "$BIN/python" training/workload.py "$1" --part validation --data "$DATA" -o "$WORK/$1-validation.parquet"
    "$BIN/python" training/search.py "$WORK/$1.parquet" "${COSTS[@]}" --validation "$WORK/$1-validation.parquet" \
        --population $POPULATION --kv-tokens "$2" --beside placement=least-sessions --candidates 12 --episodes 2 \
        --checks 6 --generations "$3" --start "$OUT/joint-hidden" --sigma 0.1 --seed 1 --out "$WORK/joint-$1" \
        --run-dir "$WORK"
    joint=${joint:+$joint,}$1=$WORK/joint-$1
}
if [ -n "${DATA:-}" ]; then
    specialist weka 900000,1222992,1600000
    specialist katas 600000,858752,1100000
    together weka 1222992 25
    together katas 858752 10
fi
"$BIN/python" training/protocol.py --out "$WORK/report" --eviction "$OUT/eviction" \
    --joint "$OUT/joint" --hidden "$OUT/joint-hidden" ${DATA:+--data "$DATA"} ${own:+--transfer "$own"} ${joint:+--own "$joint"}
cp "$WORK/report/protocol.md" "$OUT/REPORT.md"
