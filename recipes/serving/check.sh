#!/bin/sh
# Clients that know nothing of ponder, unchanged, against a server of it: an evaluation harness and an agent framework.
#
#   LM_EVAL=/path/to/lm_eval AGENT_PYTHON=/path/to/python ./check.sh [URL] [MODEL]
#
# LM_EVAL: of an environment with "lm-eval[api]". AGENT_PYTHON: of one with "pydantic-ai-slim[openai]". Without a URL it
# starts `ponder serve` with the embedded model and ends it.
set -eu
cd "$(dirname "$0")"
model=${2:-ponder-135m}
url=${1:-}
if [ -z "$url" ]; then
    port=${PORT:-8397}
    ponder serve --port "$port" --model "$model" --no-keys &
    server=$!
    trap 'kill "$server"; wait "$server" || true' EXIT
    url=http://127.0.0.1:$port/v1
    for _ in $(seq 60); do
        curl -sf "${url%/v1}/ready" >/dev/null && break
        sleep 1
    done
fi
export OPENAI_API_KEY=none HF_DATASETS_OFFLINE=1
"${LM_EVAL:-lm_eval}" run --model local-completions --tasks ponder_choices --include_path . \
    --model_args "base_url=$url/completions,model=$model,num_concurrent=4"
"${LM_EVAL:-lm_eval}" run --model local-chat-completions --tasks ponder_sums --include_path . --apply_chat_template \
    --model_args "base_url=$url/chat/completions,model=$model,num_concurrent=4"
"${LM_EVAL:-lm_eval}" run --model local-chat-completions --tasks ponder_sums --include_path . --apply_chat_template \
    --model_args "base_url=$url/chat/completions,model=$model:vote-4,num_concurrent=4"
"${AGENT_PYTHON:-python}" agent.py "$url" "$model"
