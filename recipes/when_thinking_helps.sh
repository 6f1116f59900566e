#!/bin/sh
# When does thinking help the embedded model? Word problems, which take steps, and facts, which take none: answered at
# once, with little thinking and with more, and a router that chooses question by question, measured out of fold.
#
#     recipes/when_thinking_helps.sh [FOLDER]
#
# Needs ponder with the extra `plots` in the path; takes about ten minutes on two cores, and goes on where it was stopped.
set -eu
here=$(dirname "$0")
folder=${1:-routing}
mkdir -p "$folder"
python3 "$here/problems.py" --questions 84 --facts 82 > "$folder/mixed.jsonl"
ponder route "$folder/mixed.jsonl" --arms 'direct@32,chain_of_thought@48,chain_of_thought@128' --keep 0.95 --output "$folder"
