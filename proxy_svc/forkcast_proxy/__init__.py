"""The proxy: what a candidate's loss will be, before it is tried."""

import os

# ONNX Runtime reads it when it is imported; else it keeps an id of the machine and its own use in the
# home directory, to be sent to its makers
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
