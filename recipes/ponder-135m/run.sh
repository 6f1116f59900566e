#!/usr/bin/env bash
# ponder-135m: SmolLM2-135M-Instruct learns to think. Each stage takes under 9 minutes on one H100 and goes on where it
# was stopped; its result lies in RUNS, in files of at most 16 MB, and a stage whose result is there is skipped.
#
#   DATA=folder recipes/ponder-135m/run.sh [STAGE ...]     1 cold start, 2 grpo, 3 traces, 4 reward, 5 distill, 6 measure
#   SMALL=1 recipes/ponder-135m/run.sh                     the same on a CPU in minutes: a few steps of everything
#
# DATA holds gsm8k/train.jsonl and mawps/*.jsonl; RUNS (default runs/ponder-135m) gets the results.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PONDER=${PONDER:-ponder}
DATA=${DATA:?set DATA to the folder that holds gsm8k/train.jsonl and mawps/*.jsonl}
RUNS=${RUNS:-runs/ponder-135m}
BASE=smollm2-135m-instruct
mkdir -p "$RUNS"
DATA=$(cd "$DATA" && pwd)
RUNS=$(cd "$RUNS" && pwd)

small=()
questions=8000 n=8 completions=8 limit=() policy=$RUNS/2-grpo/model
if [ -n "${SMALL:-}" ]; then
    questions=8 n=4 completions=1 limit=(--limit 4)
    policy=ponder-135m # two steps teach nothing: without this, no trace would be right
    small=(--set steps=2 --set tokens=1024 --set longest=512 --set precision=float32 --set weights=float32
        --set optimizer.warmup=0 --set save_every=1)
    few='data.sources=[{ from = "generated:word_problems", count = 60, seed = 1, difficulty = [1, 2] }]'
fi

# The recipe with the places of this machine in it.
recipe() { sed -e "s#gsm8k:gsm8k#gsm8k:$DATA/gsm8k#" -e "s#\"mawps/#\"$DATA/mawps/#g" -e "s#RUNS#$RUNS#" "$here/$1.toml" > "$RUNS/$1.toml"; }
train() { # kind, stage, further settings
    local kind=$1 stage=$2
    shift 2
    [ -e "$RUNS/$stage/model" ] && { echo "$stage is done"; return; }
    recipe "$stage"
    "$PONDER" train "$kind" "$RUNS/$stage.toml" --run "$RUNS/$stage" "${small[@]}" "$@"
}

cold_start() { train sft 1-cold-start ${SMALL:+--set "$few" --set batch=4}; }
grpo() { train grpo 2-grpo ${SMALL:+--set "$few" --set grpo.prompts=2 --set grpo.samples=2 --set grpo.max_tokens=64 --set "grpo.budgets=[12, 24]" --set grpo.slots=4}; }
traces() {
    "$PONDER" train sample "$policy" "gsm8k:$DATA/gsm8k/train.jsonl" generated:word_problems \
        --questions "$questions" --seed 3 --n "$n" --completions "$completions" --max-tokens 256 \
        --output "$RUNS/3-traces.jsonl" ${SMALL:+--max-tokens 80 --slots 16}
}
reward() { train reward 4-reward ${SMALL:+--set batch=4}; }
distill() { train distill 5-distill ${SMALL:+--set batch=4}; }
measure() {
    local sets="multiarith addsub singleop singleeq" stages="1-cold-start 2-grpo 5-distill"
    [ -z "${SMALL:-}" ] || sets=multiarith stages=5-distill
    for set in $sets; do
        for who in $stages; do
            "$PONDER" eval "$DATA/mawps/$set.jsonl" -m "hf:$RUNS/$who/model" --temperature 0 --budget 256 --json "${limit[@]}" \
                > "$RUNS/6-$set-$who.json"
        done
    done
}

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(cold_start grpo traces reward distill measure)
for stage in "${stages[@]}"; do
    case $stage in
    1 | cold_start) cold_start ;;
    2 | grpo) grpo ;;
    3 | traces) traces ;;
    4 | reward) reward ;;
    5 | distill) distill ;;
    6 | measure) measure ;;
    *) echo "there is no stage $stage: cold_start grpo traces reward distill measure" >&2; exit 2 ;;
    esac
done
