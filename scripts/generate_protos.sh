#!/usr/bin/env bash
# Regenerates protos/forkcast_wire/forkcast_pb2{.py,.pyi,_grpc.py} from forkcast.proto.
#   scripts/generate_protos.sh            write them
#   scripts/generate_protos.sh --check    write nothing; fail where the committed ones differ
# Generated code refuses a protobuf runtime older than its generator, so the generator is that of
# the oldest runtime we support (protobuf 6.31.1), in an environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
  "" | --check) ;;
  *)
    echo "usage: $0 [--check]" >&2
    exit 2
    ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  grpcio-tools==1.76.0 grpcio==1.76.0 protobuf==6.31.1
mkdir "$work/out"
"$work/venv/bin/python" -m grpc_tools.protoc --proto_path=protos --python_out="$work/out" \
  --pyi_out="$work/out" --grpc_python_out="$work/out" forkcast_wire/forkcast.proto

differ=0
for name in forkcast_pb2.py forkcast_pb2.pyi forkcast_pb2_grpc.py; do
  made=$work/out/forkcast_wire/$name
  committed=protos/forkcast_wire/$name
  if [ "${1-}" != --check ]; then
    cp "$made" "$committed"
  elif ! diff -u "$committed" "$made"; then
    differ=1
  fi
done
if [ "$differ" = 1 ]; then
  echo "generated code differs from forkcast.proto; run scripts/generate_protos.sh" >&2
  exit 1
fi
