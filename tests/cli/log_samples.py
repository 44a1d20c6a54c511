"""A few rows of every format, written for the tests: 24 steps from 0, or as the format counts, ten apart
where it logs every tenth; losses fall from 5, the norm is 1.25, the rate 2e-4, one validation of 4.5.
"""

from __future__ import annotations

import csv
import io
import json
import math
import struct
import zlib

import pyarrow as pa
import pyarrow.parquet as pq

from forkcast_wire.tfrecords import masked

ROWS = 24
NORM, RATE, VALIDATION = 1.25, 2e-4, 4.5


def loss(n):
    """Of the n-th row; four decimals, as most formats print."""
    return round(3 + 2 / (1 + n / 4), 4)


def text(lines):
    return "\n".join(lines).encode() + b"\n"


def nanogpt():
    yield "tokens per iteration will be: 491,520"
    for n in range(ROWS):
        if n == 10:
            yield f"step {n * 10}: train loss 3.9000, val loss {VALIDATION}"
            yield "saving checkpoint to out"
        yield f"iter {n * 10}: loss {loss(n):.4f}, time 135.20ms, mfu 38.51%"


def build_nanogpt():
    yield "using device: cuda"
    for n in range(ROWS):
        if n == 10:
            yield f"validation loss: {VALIDATION:.4f}"
        yield (
            f"step {n:5d} | loss: {loss(n):.6f} | lr {RATE:.4e} | norm: {NORM:.4f} | dt: 338.41ms |"
            " tok/sec: 1549261.11"
        )


def build_nanogpt_log():
    for n in range(ROWS):
        if n == 10:
            yield f"{n} val {VALIDATION:.4f}"
            yield f"{n} hella 0.2471"
        yield f"{n} train {loss(n):.6f}"


def llmc_log():
    for n in range(ROWS):
        if n == 10:
            yield f"s:{n} tel:{VALIDATION:.4f}"
            yield f"s:{n} eval:0.2512"
        yield f"s:{n} trl:{loss(n):.4f} lr:{RATE:.6f} norm:{NORM:.2f}"


def llmc_old_log():
    for n in range(ROWS):
        yield f"s:{n} trl:{loss(n):.4f}"
        if n == 10:
            yield f"s:{n} tel:{VALIDATION:.4f}"


def llmc():
    yield "| train data pattern   | dev/data/fineweb10B/fineweb_train_*.bin |"
    for n in range(ROWS):
        if n == 10:
            yield f"val loss {VALIDATION:.6f}"
        yield (
            f"step {n + 1:4d}/19560 | loss {loss(n):.6f} (+0.41z)| norm {NORM:.4f} (-nanz)| lr {RATE:.2e}"
            " | 221.40 ms | 61.2% bf16 MFU | 2367321 tok/s"
        )


def modded_nanogpt():
    yield "import os"
    yield "x = {'loss': 3.0}  # a line of the source code that the log begins with"
    yield "=" * 100
    for n in range(ROWS):
        if n == 10:
            yield f"step:{n}/6200 val_loss:{VALIDATION:.4f} train_time:23100ms step_avg:216.60ms"
        yield f"step:{n}/6200 train_loss:{loss(n):.4f} train_time:23310ms step_avg:216.60ms"


def megatron():
    yield "  lr ...................................... 0.00015"
    for n in range(ROWS):
        yield (
            f" [2026-01-02 03:04:05] iteration {n * 10:8d}/  500000 | consumed samples: {n:12d} | elapsed time"
            f" per iteration (ms): 5123.4 | learning rate: {RATE:.6E} | global batch size:   256 | lm loss:"
            f" {loss(n):.6E} | load_balancing_loss: 1.0E+00 | loss scale: 1.0 | grad norm: {NORM:.3f} |"
            " number of skipped iterations:   0 | number of nan iterations:   0 |"
        )
        if n == 10:
            yield "-" * 60
            yield (
                f" validation loss at iteration {n * 10} | lm loss value: {VALIDATION:.6E} |"
                " lm loss PPL: 9.0E+01 | "
            )


def neox():
    for n in range(ROWS):
        yield (
            f" samples/sec: 21.5 | iteration {n * 10:8d}/  143000 | elapsed time per iteration (ms): 1.0 |"
            f" learning rate: {RATE:.3E} | lm_loss: {loss(n):.6E} | number of skipped iterations:   0 |"
            " number of nan iterations:   0 |"
        )


def torchtitan():
    red, off = "\x1b[31m", "\x1b[39m"
    for n in range(ROWS):
        yield (
            f"[rank0]:2026-01-02 03:04:05,678 - root - INFO - {red}step: {n + 1:2d}  \x1b[32mloss: {loss(n):8.5f}"
            f"  {off}grad_norm: {NORM:7.4f}  \x1b[33mmemory: 41.12GiB(51.85%)  tps: 7,012  mfu: 36.50%{off}"
        )
        if n == 10:
            yield f"[rank0]:... - INFO - {red}validate step: {n + 1}  loss: {VALIDATION:.5f}  memory: 41GiB"


def maxtext():
    for n in range(ROWS):
        yield (
            f"completed step: {n}, seconds: 1.150, TFLOP/s/device: 470.000, Tokens/s/device: 57000.000,"
            f" total_weights: 65536, loss: {loss(n):.3f}"
        )
        if n == 10:
            yield f"eval metrics after step: {n}, loss={VALIDATION:.3f}, total_weights=65536.0"


def olmo():
    prefix = "2026-01-02 03:04:05.678\thost:0\tolmo.train:916\tINFO\t"
    for n in range(ROWS):
        yield f"{prefix}[step={n}/1000,epoch=0]"
        yield f"    optim/total_grad_norm={NORM}"
        yield f"    optim/learning_rate_group0={RATE}"
        yield f"    train/CrossEntropyLoss={loss(n):.4f}"
        yield "    train/Perplexity=33.5"
        yield "    throughput/total_tokens=4,194,304"


def olmo_core():
    for n in range(ROWS):
        yield f"2026-01-02 host:0 olmo_core.train.callbacks.console_logger:116 INFO [step={n}/1,000,epoch=1]"
        yield f"    train/CE loss={loss(n):.4f}"
        yield "    train/Z loss=0.0012"
        yield f"    optim/total grad norm={NORM}"
        yield f"    optim/LR (group 0)={RATE}"


def composer():
    for n in range(ROWS):
        yield f"[batch={n}/4800]:"
        yield "\t Train time/token: 4194304"
        yield f"\t Train l2_norm/grad/global: {NORM:.4f}"
        yield f"\t Train loss/train/total: {loss(n):.4f}"
        yield "\t Train metrics/train/LanguagePerplexity: 33.1"
        yield f"\t Train lr-DecoupledAdamW/group0: {RATE:.6f}"


def fairseq():
    for n in range(ROWS):
        bits = loss(n) / math.log(2)
        values = {"epoch": 1, "loss": f"{bits:.6f}", "ppl": "899.1", "num_updates": str(n * 10)}
        values |= {"lr": f"{RATE}", "gnorm": f"{NORM}", "loss_scale": "128"}
        yield f"2026-01-02 03:04:05 | INFO | train_inner | {json.dumps(values)}"
        if n == 10:
            held = {"valid_loss": f"{VALIDATION / math.log(2):.6f}", "valid_num_updates": "100"}
            yield f"2026-01-02 03:04:06 | INFO | valid | {json.dumps(held)}"


def trainer_stdout():
    bar = "  1%|          | 10/1000 [00:01<02:45,  6.01it/s]"
    for n in range(ROWS):
        row = {"loss": loss(n), "grad_norm": NORM, "learning_rate": RATE, "epoch": 0.15}
        yield f"{bar}\r{bar}\r{' ' * 40}\r{row}"
        if n == 10:
            yield str({"eval_loss": VALIDATION, "eval_runtime": 3.2, "epoch": 0.2})
    yield str({"train_runtime": 99.0, "train_loss": 4.2, "epoch": 1.0})


def trainer_stdout_quoted():
    for n in range(ROWS):
        yield str({"loss": f"{loss(n)}", "grad_norm": f"{NORM}", "learning_rate": f"{RATE}"})


def json_lines():
    yield json.dumps({"config": {"loss": "mean"}, "seed": 1})
    for n in range(ROWS):
        yield json.dumps(
            {"step": n, "train": {"loss": loss(n), "aux_loss": 0.1}, "grad_norm": NORM, "lr": RATE}
        )
        if n == 10:
            yield json.dumps({"step": n, "val/loss": VALIDATION, "val/loss_min": 1.0})


def wandb_dump():
    """`_step` counts calls of the logger; the run's own step is train/global_step."""
    calls = 0
    for n in range(ROWS):
        row = {"train/loss": loss(n), "train/grad_norm": NORM, "train/learning_rate": RATE}
        yield json.dumps({"_step": calls, "train/global_step": n * 10, "_runtime": 1.5 * n, **row})
        calls += 1
        if n == 10:
            yield json.dumps({"_step": calls, "train/global_step": n * 10, "eval/loss": VALIDATION})
            calls += 1


def own_text():
    for n in range(ROWS):
        yield f"[03:04:05] epoch 1 step {n}/1000 train loss={loss(n)} (avg 9.5) lr={RATE} grad_norm={NORM}"
        if n == 10:
            yield f"[03:04:05] epoch 1 step {n}/1000 val loss={VALIDATION}"


def table(rows, delimiter=","):
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def csv_rows():
    for n in range(ROWS):
        row = {"step": n, "train_loss": loss(n), "grad_norm": NORM, "lr": RATE}
        yield row | ({"val_loss": VALIDATION} if n == 10 else {})


def lightning():
    """Sparse: what is logged at one step stands in several rows."""
    yield {"epoch": 0, "step": "", "train_loss_step": "", "lr-AdamW": RATE, "val_loss": ""}
    for n in range(ROWS):
        yield {"epoch": 0, "step": n * 50 + 49, "train_loss_step": loss(n)}
        yield {"epoch": 0, "step": n * 50 + 49, "lr-AdamW": RATE}
        if n == 10:
            yield {"epoch": 0, "step": n * 50 + 49, "val_loss": VALIDATION}
    yield {"epoch": 0, "step": ROWS * 50, "train_loss_epoch": 4.0}


def wandb_export():
    for n in range(ROWS):
        row = {"Step": n * 10}
        for run in ("a - b", "second"):
            name = f"{run} - train/loss"
            row |= {name: loss(n), f"{name}__MIN": loss(n) - 0.1, f"{name}__MAX": loss(n)}
        yield row


def quoted(data):
    header, _, rest = data.partition(b"\n")
    return b",".join(b'"' + name + b'"' for name in header.split(b",")) + b"\n" + rest


def trainer_state():
    history = [
        {"epoch": 0.1, "grad_norm": NORM, "learning_rate": RATE, "loss": loss(n), "step": n * 10}
        for n in range(ROWS)
    ]
    history.insert(11, {"epoch": 0.2, "eval_loss": VALIDATION, "step": 100})
    history.append({"step": 240, "train_loss": 4.0, "train_runtime": 99.0, "epoch": 1.0})
    return {"best_metric": None, "global_step": 240, "log_history": history, "max_steps": 240}


def parquet():
    rows = [
        {"iteration": n, "loss": loss(n), "grad_norm": NORM, "lr": RATE, "norms": [1.0, 2.0]}
        | {"val_loss": VALIDATION if n == 10 else None}
        for n in range(ROWS)
    ]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tf_record(data):
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def event(step, tag, value, *, tensor=False):
    number = struct.pack("<f", value)
    content = varint(2 << 3 | 5) + number
    if tensor:
        content = field(8, field(1, 1) + field(4, number))
    summary = field(1, field(1, tag.encode()) + content)
    return tf_record(b"\x09" + struct.pack("<d", 1.7e9) + field(2, step) + field(5, summary))


def tensorboard():
    yield tf_record(b"\x09" + struct.pack("<d", 1.7e9) + field(3, b"brain.Event:2"))
    for n in range(ROWS):
        yield event(n, "train/loss", loss(n))
        yield event(n, "train/grad_norm", NORM, tensor=True)
        yield event(n, "train/learning_rate", RATE)
        if n == 10:
            yield event(n, "eval/loss", VALIDATION)


def wandb_records():
    yield field(17, b"\x0a\x05tests")
    calls = 0
    for n in range(ROWS):
        row = {"train/loss": loss(n), "train/grad_norm": NORM, "train/global_step": n, "lr": RATE}
        rows = [row, {"eval/loss": VALIDATION, "train/global_step": n}] if n == 10 else [row]
        for values in rows:
            items = b"".join(
                field(1, field(2, name.encode()) + field(16, json.dumps(value).encode()))
                for name, value in values.items()
            )
            yield field(2, items + field(2, field(1, calls)))
            calls += 1


def leveldb(records, block=1 << 15):
    """Records as W&B's writer lays them out in blocks."""
    out = b":W&B\xe1\xbe\x00"
    for record in records:
        rest, first = record, True
        while rest or first:
            left = block - len(out) % block
            if left < 7:
                out += b"\0" * left
                continue
            part, rest = rest[: left - 7], rest[left - 7 :]
            kind = (1 if first else 4) if not rest else (2 if first else 3)
            crc = zlib.crc32(part, zlib.crc32(bytes([kind])))
            out += struct.pack("<IHB", crc, len(part), kind) + part
            first = False
    return out


def _all():
    texts = {
        "nanoGPT": (nanogpt, 10, "v"),
        "build-nanogpt": (build_nanogpt, 1, "nrv"),
        "build-nanogpt log.txt": (build_nanogpt_log, 1, "v"),
        "llm.c main.log": (llmc_log, 1, "nrv"),
        "llm.c main.log, old": (llmc_old_log, 1, "v"),
        "llm.c": (llmc, 1, "nrv"),
        "modded-nanogpt": (modded_nanogpt, 1, "v"),
        "Megatron-LM or GPT-NeoX": (megatron, 10, "nrv"),
        "Megatron-LM or GPT-NeoX, NeoX": (neox, 10, "r"),
        "torchtitan": (torchtitan, 1, "nv"),
        "MaxText": (maxtext, 1, "v"),
        "OLMo": (olmo, 1, "nr"),
        "OLMo, OLMo-core": (olmo_core, 1, "nr"),
        "Composer": (composer, 1, "nr"),
        "fairseq": (fairseq, 10, "nrv"),
        "Hugging Face Trainer's output": (trainer_stdout, 1, "nrv"),
        "Hugging Face Trainer's output, quoted": (trainer_stdout_quoted, 1, "nr"),
        "JSON lines": (json_lines, 1, "nrv"),
        "JSON lines, of W&B": (wandb_dump, 10, "nrv"),
        "text with names and numbers": (own_text, 1, "nrv"),
    }
    found = {name: (text(make()), every, has) for name, (make, every, has) in texts.items()}
    found["CSV table"] = (table(list(csv_rows())), 1, "nrv")
    found["CSV table, tabs"] = (table(list(csv_rows()), "\t"), 1, "nrv")
    found["CSV table, Lightning"] = (table(list(lightning())), 50, "rv")
    found["W&B export"] = (quoted(table(list(wandb_export()))), 10, "")
    found["JSON document"] = (json.dumps(trainer_state(), indent=2).encode(), 10, "nrv")
    found["JSON document, one line"] = (json.dumps(trainer_state()).encode(), 10, "nrv")
    rows = [row for row in trainer_state()["log_history"] if "train_loss" not in row]
    found["JSON document, a list"] = (json.dumps(rows).encode(), 10, "nrv")
    found["Parquet"] = (parquet(), 1, "nrv")
    found["TensorBoard events"] = (b"".join(tensorboard()), 1, "nrv")
    found["W&B run file"] = (leveldb(wandb_records()), 1, "nrv")
    return found


#: By name of the format (after a comma: of the kind of log): its bytes, steps a row, and whether it has
#: norms (n), rates (r), a validation (v).
SAMPLES = _all()
