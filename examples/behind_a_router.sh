#!/usr/bin/env bash
# Two servers of the embedded model behind a router, on this machine. Requests whose prompts begin alike should go to the server that has
# that beginning in its prefix cache: the script asks each server for an own prompt, then asks the router to go on with it, and prints how many
# prompt tokens were found in the cache.
#
#   examples/behind_a_router.sh [vllm|sglang]
#
# It needs Python 3, and installs the router into a virtual environment in target/router-KIND. PAGEDRAFT names another program than
# target/release/pagedraft.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-vllm}
pagedraft=${PAGEDRAFT:-target/release/pagedraft}
venv=target/router-$kind
case $kind in
  vllm) package=vllm-router==0.1.17 ;;
  sglang) package=sglang-router==0.3.2 ;;
  *) echo "usage: $0 [vllm|sglang]" >&2; exit 2 ;;
esac
[ -x "$pagedraft" ] || { echo "$pagedraft is not there: cargo build --release" >&2; exit 2; }
if ! [ -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q "$package"
fi

logs=$(mktemp -d)
end() {
  # Servers finish what runs, and end.
  kill $(jobs -p) 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$logs"
}
trap end EXIT

wait_for() { # URL LOG
  for _ in $(seq 150); do
    curl -sf "$1" >/dev/null && return
    sleep 0.2
  done
  echo "$1 does not answer:" >&2
  tail -n 5 "$2" >&2
  exit 1
}

# Two servers, each with its own port for what enters and leaves its cache.
for server in 1 2; do
  "$pagedraft" serve --port "801$server" --served-model-name target --threads 1 \
    --kv-events "tcp://127.0.0.1:555$server" --kv-events-replay "tcp://127.0.0.1:556$server" >"$logs/$server" 2>&1 &
done
one=http://127.0.0.1:8011
two=http://127.0.0.1:8012
wait_for $one/health "$logs/1"
wait_for $two/health "$logs/2"

case $kind in
  vllm)
    "$venv/bin/vllm-router" --host 127.0.0.1 --port 8010 --worker-urls $one $two --policy kv_aware \
      --kv-event-source $one=tcp://127.0.0.1:5551 --kv-event-replay-source $one=tcp://127.0.0.1:5561 \
      --kv-event-source $two=tcp://127.0.0.1:5552 --kv-event-replay-source $two=tcp://127.0.0.1:5562 \
      --kv-event-block-size 16 --kv-event-model target >"$logs/router" 2>&1 &
    ;;
  sglang)
    "$venv/bin/sglang-router" launch --host 127.0.0.1 --port 8010 --worker-urls $one $two --policy cache_aware >"$logs/router" 2>&1 &
    ;;
esac
router=http://127.0.0.1:8010
wait_for $router/health "$logs/router"

ask() { # URL PROMPT; prints how many prompt tokens there were, and how many were found in the cache
  curl -sf "$1/v1/completions" -H 'Content-Type: application/json' \
    -d "{\"model\": \"target\", \"prompt\": \"$2\", \"max_tokens\": 4, \"temperature\": 0}" |
    python3 -c 'import json, sys; u = json.load(sys.stdin)["usage"]; print(u["prompt_tokens"], u["prompt_tokens_details"]["cached_tokens"])'
}
long() { for _ in $(seq 30); do printf '%s ' "$1"; done; }

found=0
for i in 1 2 3 4; do
  # The first time the servers are asked themselves (behind cache_aware, which hears of nothing else, the router is).
  prompt="Story $i: $(long "king$i and queen$i")"
  case $kind in
    vllm) first=$([ $((i % 2)) = 1 ] && echo $one || echo $two) ;;
    sglang) first=$router ;;
  esac
  ask "$first" "$prompt" >/dev/null
  sleep 0.3
  read -r tokens cached <<<"$(ask $router "$prompt and then")"
  echo "prompt $i, first sent to $first: $cached of $tokens prompt tokens were in the cache of the server that the router chose"
  [ "$cached" -gt $((tokens / 2)) ] && found=$((found + 1))
done
echo "$found of 4 requests went to the server that has their prefix"
[ "$found" = 4 ]
