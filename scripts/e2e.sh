#!/usr/bin/env bash
# The whole loop on a real cluster: images, chart, a run, a branch in pods, the end. Ten to twenty minutes.
# CLUSTER names the command that starts a cluster; without one there is nothing to do. The cluster is
# one of its own and goes at the end; KEEP=1 leaves it. SKIP_IMAGES=1 takes the images of a former run.
set -euo pipefail
cd "$(dirname "$0")/.."
CLUSTER=${CLUSTER:-../shared/cluster/cluster}
SYSTEM=forkcast-system RUNS=forkcast-runs RUN=cpu-smoke BUCKET=forkcast-e2e
PYTHON=${PYTHON:-.venv/bin/python}
HELM=${HELM:-$(dirname "$PYTHON")/helm}
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
LIMIT=${LIMIT:-1200}

say() { printf '\n== %s\n' "$*"; }
fail() {
  printf 'e2e: %s\n' "$*" >&2
  kubectl -n "$RUNS" get trun,fkb,jobs,pods -o wide >&2 || true
  kubectl -n "$RUNS" get events --sort-by=.lastTimestamp >&2 | tail -30 || true
  kubectl -n "$SYSTEM" logs deploy/forkcast-operator --tail=60 >&2 || true
  exit 1
}

if [[ ! -x $CLUSTER ]]; then
  echo "skipped: no cluster command at $CLUSTER"
  exit 0
fi
if [[ $(id -u) != 0 ]]; then
  echo "skipped: starting a cluster needs root"
  exit 0
fi

say "cluster"
if [[ -z ${CLUSTER_DIR:-} ]]; then
  CLUSTER_DIR=$(mktemp -d)
  export CLUSTER_DIR
fi
[[ -n ${KEEP:-} ]] || trap '"$CLUSTER" down --wipe >/dev/null' EXIT
"$CLUSTER" up
eval "$("$CLUSTER" env)"

if [[ -z ${SKIP_IMAGES:-} ]]; then
  say "images"
  "$CLUSTER" image "forkcast/control:$VERSION" -f Dockerfile.control .
  "$CLUSTER" image "forkcast/trainer:$VERSION" -f Dockerfile.trainer .
fi

say "namespaces and credentials"
for name in "$SYSTEM" "$RUNS"; do
  kubectl create namespace "$name" --dry-run=client -o yaml | kubectl apply -f -
  kubectl label --overwrite namespace "$name" pod-security.kubernetes.io/enforce=restricted
  kubectl -n "$name" create secret generic forkcast-store --dry-run=client -o yaml \
    --from-literal=accessKeyId=forkcast --from-literal=secretAccessKey=forkcast-secret | kubectl apply -f -
done
"$PYTHON" - "$BUCKET" <<'PY'
import sys
from minio import Minio
store = Minio("127.0.0.1:9000", access_key="forkcast", secret_key="forkcast-secret", secure=False)
if not store.bucket_exists(sys.argv[1]):
    store.make_bucket(sys.argv[1])
PY

say "chart"
"$HELM" upgrade --install forkcast charts/forkcast --namespace "$SYSTEM" --wait --timeout 5m \
  --set objectStore.external.endpoint=http://10.88.0.1:9000 \
  --set objectStore.external.bucket="$BUCKET" \
  --set monitor.persistence.enabled=false ${HELM_ARGS:-} || fail "the chart is not up"
kubectl -n "$SYSTEM" get pods
# files in the image, without what is mounted into the pod
BYTES=$(kubectl -n "$SYSTEM" exec deploy/forkcast-operator -- sh -c 'du -sxb / 2>/dev/null || true' | cut -f1)
echo "control image: $BYTES bytes"
((0 < BYTES && BYTES <= 400000000)) || fail "the control image has more than 400 MB"
"$HELM" test forkcast --namespace "$SYSTEM" | grep -A4 "^TEST SUITE" || fail "the services do not answer"

say "run"
kubectl -n "$RUNS" apply -f examples/kubernetes/cpu-smoke.yaml
kubectl -n "$RUNS" wait trun/$RUN --for=jsonpath='{.status.branches.total}'=1 --timeout="${LIMIT}s" || fail "no branch"
kubectl -n "$RUNS" get trun,fkb,jobs
kubectl -n "$RUNS" wait trun/$RUN --for=condition=Finished --timeout="${LIMIT}s" || fail "not finished"

say "what came of it"
kubectl -n "$RUNS" get trun,fkb
kubectl -n "$RUNS" describe trun/$RUN | sed -n '/^Status/,$p'
[[ $(kubectl -n "$RUNS" get trun/$RUN -o jsonpath='{.status.conditions[?(@.type=="Complete")].status}') == True ]] ||
  fail "the run is not complete"
kubectl -n "$RUNS" wait fkb --all --for=condition=Finished --timeout=60s || fail "a branch has not ended"
kubectl -n "$RUNS" get fkb -o jsonpath='{range .items[*]}{.metadata.name} {.status.decision.outcome}{"\n"}{end}'
EPOCH=$(kubectl -n "$RUNS" get trun/$RUN -o jsonpath='{.status.lineage.epoch}')
((EPOCH > 0)) || fail "no branch was adopted"
"$PYTHON" - "$BUCKET" "$RUNS/$RUN-" "$EPOCH" <<'PY' || fail "the store does not hold what it must"
import sys
from minio import Minio
bucket, prefix, epoch = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = Minio("127.0.0.1:9000", access_key="forkcast", secret_key="forkcast-secret", secure=False)
keys = [one.object_name.split("/", 2)[2] for one in store.list_objects(bucket, prefix=prefix, recursive=True)]
states = [key for key in keys if key.startswith("checkpoints/") and key.endswith("manifest.json")]
print(f"{len(keys)} objects, {len(states)} checkpoints, epoch {epoch}")
assert states and "complete.json" in keys
assert any(key.endswith("/decision.json") for key in keys)
assert {f"lineage/{one}.json" for one in range(1, epoch + 1)} <= set(keys)
assert any(key.startswith(f"checkpoints/e{epoch}/") for key in states)
PY
if kubectl -n "$SYSTEM" logs deploy/forkcast-operator | grep -c Traceback; then fail "the operator logged a traceback"; fi

if grep -h '"user":{"username":"system:serviceaccount:'"$SYSTEM" "$CLUSTER_DIR/logs/audit.log" |
  grep -E '"code":(401|403)'; then fail "the API server refused a right"; fi

say "delete"
kubectl -n "$RUNS" delete trun/$RUN --timeout=120s || fail "deleting hangs"
[[ -z $(kubectl -n "$RUNS" get jobs,fkb -o name) ]] || fail "children are left"
echo "e2e: passed"
