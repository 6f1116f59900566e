#!/usr/bin/env bash
# ponder-135m: SmolLM2-135M-Instruct learns to think. Each stage goes on where it was stopped, also by kill -9, and is
# skipped once it is done. What is to be kept of it lies in RUNS, in files of at most 16 MB (README.md lists them).
#
#   DATA=folder recipes/ponder-135m/run.sh [STAGE ...]     1 cold_start, 2 grpo, 3 traces, 4 reward, 5 distill,
#                                                          6 measure, 7 report; all of them unless some are named
#   SMALL=1 DATA=folder recipes/ponder-135m/run.sh         two steps of everything on a CPU: shows that it runs
#
# DATA holds gsm8k/train.jsonl and mawps/*.jsonl; RUNS (default runs/ponder-135m) gets the results. DOLLARS, where it is
# set, is what an hour of the machine costs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PONDER=$(command -v "${PONDER:-ponder}") || { echo "run.sh: there is no ponder here: pip install 'ponder[train]', or set PONDER" >&2; exit 2; }
PYTHON=${PYTHON:-$(dirname "$PONDER")/python}
DATA=${DATA:?set DATA to the folder that holds gsm8k/train.jsonl and mawps/*.jsonl}
RUNS=${RUNS:-runs/ponder-135m}
mkdir -p "$RUNS/6-measure"
DATA=$(cd "$DATA" && pwd)
RUNS=$(cd "$RUNS" && pwd)
export DATA RUNS PONDER
BASE=smollm2-135m-instruct
POLICY=$RUNS/2-grpo/grpo PROCESS=$RUNS/4-reward/process FINAL=$RUNS/5-distill/ponder-135m

small=() first=() few=() batch=() seen=() asked=()
sets="multiarith addsub singleop singleeq" n=8 budget=2048 at_once=64
if [ -n "${SMALL:-}" ]; then
    # Two steps teach nothing: the adapter that ponder comes with stands in for what a cold start would give.
    first=(--set model=ponder-135m --set adapter=own --set optimizer.rate=1e-6)
    small=(--set steps=2 --set tokens=1024 --set longest=512 --set precision=float32 --set weights=float32
        --set optimizer.warmup=0 --set save_every=1)
    few=(--set 'data.sources=[{ from = "generated:word_problems", count = 60, seed = 1, difficulty = [1, 2] }]')
    seen=(--set grpo.prompts=4 --set grpo.samples=4 --set grpo.max_tokens=96 --set "grpo.budgets=[32, 64]" --set grpo.slots=16)
    batch=(--set batch=4) asked=(--limit 2)
    sets=multiarith n=2 budget=256 at_once=4
fi

# Where a small run has been, a full one would take its results for its own.
scale=$RUNS/full
[ -z "${SMALL:-}" ] || scale=$RUNS/small
if [ ! -e "$scale" ] && { [ -e "$RUNS/small" ] || [ -e "$RUNS/full" ]; }; then
    echo "run.sh: $RUNS holds a run of the other scale: set another RUNS" >&2
    exit 2
fi
touch "$scale"

results() { "$PYTHON" "$here/results.py" "$@"; }

# ---------------------------------------------------------------- training

# The recipe with the places of this machine in it.
recipe() {
    local kept=cat
    # Small runs begin with an adapter that is there, not with a new one.
    [ -z "${SMALL:-}" ] || [ "$1" != 1-cold-start ] || kept="sed /^\[lora\]/,/^$/d"
    sed -e "s#gsm8k:gsm8k#gsm8k:$DATA/gsm8k#" -e "s#\"mawps/#\"$DATA/mawps/#g" -e "s#\"RUNS/#\"$RUNS/#" "$here/$1.toml" | $kept > "$RUNS/$1.toml"
}
made() { [ -e "$RUNS/$1/$2/$2.gguf" ] && echo "$1 is done"; } # stage, the name of its adapter
train() { # kind, stage, the name of its adapter, further settings
    local kind=$1 run=$RUNS/$2 adapter=$RUNS/$2/$3
    recipe "$2"
    "$PONDER" train "$kind" "$run.toml" --run "$run" "${small[@]}" "${@:4}"
    # In half the bytes of the run's own result; the GGUF file comes last, and says that all of it is there.
    rm -rf "$adapter"
    "$PONDER" export "$run" --to peft --packing f16 --output "$adapter"
    "$PONDER" export "$run" --to gguf --output "$adapter/$3.gguf"
}
cold_start() { made 1-cold-start cold-start || train sft 1-cold-start cold-start "${batch[@]}" "${first[@]}" "${few[@]}"; }
grpo() { made 2-grpo grpo || train grpo 2-grpo grpo "${few[@]}" "${seen[@]}"; }
reward() {
    made 4-reward process && return
    results unpack "$RUNS/3-labelled"
    train reward 4-reward process "${batch[@]}"
}
distill() {
    made 5-distill ponder-135m && return
    results unpack "$RUNS/3-traces"
    train distill 5-distill ponder-135m "${batch[@]}"
}

# ---------------------------------------------------------------- the policy's own traces

sample() { # name, further options
    [ ! -e "$RUNS/$1-0.jsonl.xz" ] || { echo "$1 is done"; return; }
    "$PONDER" train sample "$POLICY" "gsm8k:$DATA/gsm8k/train.jsonl" generated:word_problems --output "$RUNS/$1.part.jsonl" "${@:2}"
    results pack "$RUNS/$1.part.jsonl" "$RUNS/$1"
}
traces() {
    if [ -n "${SMALL:-}" ]; then
        sample 3-traces --questions 4 --seed 3 --n 4 --max-tokens 96 --slots 16 --temperature 0.5
        sample 3-labelled --questions 2 --seed 4 --n 2 --completions 1 --max-tokens 80 --slots 16
    else
        sample 3-traces --questions 3000 --seed 3 --n 8 --max-tokens 256 --slots 1024
        sample 3-labelled --questions 1000 --seed 4 --n 4 --completions 4 --max-tokens 256 --slots 1024
    fi
}

# ---------------------------------------------------------------- measuring

ask() { # name of the result, set, model, further options
    [ ! -e "$RUNS/6-measure/$1.json" ] || return 0
    results measured "$RUNS/6-measure/$1.json" "$PONDER" eval "$DATA/mawps/$2.jsonl" -m "$3" --json --at-once "$at_once" "${asked[@]}" "${@:4}"
}
measure() {
    local set best="best_of_n($n, verifier='process_reward_model(adapters={\"process\": 1.0})')"
    local greedy=(--temperature 0 --budget 256) several=(--temperature 0.8 --budget "$budget")
    for set in $sets; do
        ask "$set-cold-start" "$set" "hf:$RUNS/1-cold-start/cold-start" "${greedy[@]}"
        ask "$set-grpo" "$set" "hf:$POLICY" "${greedy[@]}"
        ask "$set-final" "$set" "hf:$FINAL" "${greedy[@]}"
        ask "$set-direct" "$set" "hf:$FINAL" "${greedy[@]}" --strategy direct
        # Chosen by the majority, and by the process reward model, which is switched off while samples are drawn.
        ask "$set-vote" "$set" "hf:$FINAL" "${several[@]}" --adapter "$PROCESS=0" --strategy "vote($n)"
        ask "$set-best" "$set" "hf:$FINAL" "${several[@]}" --adapter "$PROCESS=0" --strategy "$best" --against "vote($n)"
    done
    # What is shipped: the 4-bit base in llama.cpp, with both adapters beside it.
    local shipped=(--adapter "$FINAL/ponder-135m.gguf")
    ask multiarith-gguf multiarith "gguf:$BASE" "${greedy[@]}" "${shipped[@]}"
    [ -n "${SMALL:-}" ] || asked=(--limit 100)
    ask multiarith-gguf-best multiarith "gguf:$BASE" "${several[@]}" "${shipped[@]}" --adapter "$PROCESS/process.gguf=0" --strategy "$best"
}
report() { results report; }

# ---------------------------------------------------------------- stages

stage='' began=0
ended() { # also where a stage fails: what it took until then counts
    local code=$?
    [ -n "$stage" ] || return 0
    echo "$stage $((SECONDS - began))" >> "$RUNS/seconds.txt"
    [ "$code" = 0 ] || echo "run.sh: stage $stage stopped with code $code; the same command goes on from there" >&2
    stage=''
    return "$code"
}
trap ended EXIT

names=(cold_start grpo traces reward distill measure report)
chosen=()
for each in "${@:-all}"; do
    case $each in
    all) chosen=("${names[@]}") ;;
    [1-7]) chosen+=("${names[each - 1]}") ;;
    cold_start | grpo | traces | reward | distill | measure | report) chosen+=("$each") ;;
    *) echo "run.sh: there is no stage $each: choose from ${names[*]}" >&2; exit 2 ;;
    esac
done
for each in "${chosen[@]}"; do
    stage=$each began=$SECONDS
    "$each"
    ended
done
