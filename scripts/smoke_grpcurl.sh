#!/usr/bin/env bash
# Call every served model by a plain gRPC client: grpcurl, or `buf curl` where there is none.
#   scripts/smoke_grpcurl.sh [--management HOST:PORT | --gateway] [HOST:PORT] [MODEL ...]
# Without names of models, all that management lists. A token is taken from
# MEDSERVE_TOKEN, certificates to trust from MEDSERVE_CA_FILE, which turns TLS on.
set -euo pipefail
cd "$(dirname "$0")/.."

address="" management="" gateway=false models=() failures=0
while [ $# -gt 0 ]; do
  case "$1" in
    --management) management="$2"; shift 2 ;;
    --gateway) gateway=true; shift ;;
    -*) echo "unknown option $1; see the first lines of $0" >&2; exit 2 ;;
    *) if [ -z "$address" ]; then address="$1"; else models+=("$1"); fi; shift ;;
  esac
done
if $gateway; then # one port speaks all contracts
  address="${address:-127.0.0.1:8001}" management="${address:-127.0.0.1:8001}"
fi
address="${address:-127.0.0.1:7070}"
management="${management:-${address%:*}:$((${address##*:} + 1))}"

INFERENCE=org.pytorch.serve.grpc.inference.InferenceAPIsService
MANAGEMENT=org.pytorch.serve.grpc.management.ManagementAPIsService
protoset="${MEDSERVE_PROTOSET:-build/medserve.protoset}"
buf="${BUF:-.venv/bin/buf}"
[ -f "$protoset" ] || { echo "no $protoset; make protos writes it" >&2; exit 2; }

# call ADDRESS METHOD: the body comes from standard input, the answer goes to standard output.
call() {
  local flags=() scheme=http
  if [ -n "${MEDSERVE_CA_FILE:-}" ]; then scheme=https; flags+=(-cacert "$MEDSERVE_CA_FILE"); else flags+=(-plaintext); fi
  [ -z "${MEDSERVE_TOKEN:-}" ] || flags+=(-H "authorization: Bearer $MEDSERVE_TOKEN")
  if command -v grpcurl > /dev/null; then
    grpcurl "${flags[@]}" -protoset "$protoset" -max-msg-sz 268435456 -d @ "$1" "$2"
    return
  fi
  flags=("${flags[@]/#-plaintext/--http2-prior-knowledge}")
  "$buf" curl --protocol grpc "${flags[@]/#-cacert/--cacert}" --schema "$protoset#format=binpb" \
    -d @- "$scheme://$1/$2"
}

# answers: the bytes in every `prediction` of standard input.
answers() { grep -o '"prediction": *"[^"]*"' | cut -d'"' -f4 | while read -r each; do base64 -d <<< "$each"; echo; done; }

# body MODEL MORE: a request with the room's example or golden input; a sampler needs numbers alone.
body() {
  local file="" params
  if ! grep -Eqs '^ *task: *generation' "models/$1/model-config.yaml"; then
    file="$(find "models/$1/examples" "models/$1/weights" -path '*/examples/*.*' -o -name 'golden_input.*' 2> /dev/null | sort | head -n 1)"
  fi
  if [ -n "$file" ]; then
    printf '{"model_name":"%s","input":{%s"data":"' "$1" "$2"
    base64 -w0 "$file"
    printf '"}}'
  else
    params="$(printf '{"n":1,"steps":4,"seed":1}' | base64 -w0)"
    printf '{"model_name":"%s","input":{%s"params":"%s"}}' "$1" "$2" "$params"
  fi
}

# judge WHAT FILE: a good answer is a file, or JSON that reports no error.
judge() {
  local size
  size=$(wc -c < "$2")
  if [ "$size" -le 1 ]; then
    echo "FAILED  $1: no answer"
    failures=$((failures + 1))
  elif grep -aq '"status": *"error"\|"error": *{' "$2"; then
    echo "FAILED  $1: $(grep -ao '"message": *"[^"]*"' "$2" | head -n 1)"
    failures=$((failures + 1))
  else
    echo "ok      $1: $size bytes"
  fi
}

answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

printf '{}' | call "$address" "$INFERENCE/Ping" > "$answer" || true
judge Ping "$answer"
if [ ${#models[@]} -eq 0 ]; then
  listed=$(printf '{"limit":100}' | call "$management" "$MANAGEMENT/ListModels" | grep -o 'modelName\\": *\\"[^"\]*')
  mapfile -t models <<< "$listed"
  models=("${models[@]##*\"}")
fi
for model in "${models[@]}"; do
  printf '{"model_name":"%s"}' "$model" | call "$management" "$MANAGEMENT/DescribeModel" > "$answer" || true
  judge "DescribeModel $model" "$answer"
  body "$model" "" | call "$address" "$INFERENCE/Predictions" | answers > "$answer" || true
  judge "Predictions $model" "$answer"
  body "$model" '"stream":"MQ==",' | call "$address" "$INFERENCE/StreamPredictions" | answers > "$answer" || true
  judge "StreamPredictions $model" "$answer"
done
[ "$failures" -eq 0 ] || exit 1
