"""Which part of a transformer a parameter belongs to, by its name."""

from __future__ import annotations

GROUPS = ("embedding", "attention", "mlp", "norm", "other")
#: Parts of names as GPT-2, Llama, Mistral, Qwen, BERT, T5, nanoGPT and torchtitan use them. The first
#: group with a match is taken: a block's norms are also below its attention or its MLP.
_PARTS = {
    "embedding": ("wte", "wpe", "lm_head", "embed", "embd", "tok_", "shared.weight"),
    "norm": (".ln_", "ln_f", "norm"),
    "attention": ("attn", "attention"),
    "mlp": (
        "mlp",
        "ffn",
        "feed_forward",
        "feedforward",
        "expert",
        "densereludense",
        "intermediate",
    ),
}


def group_of(name: str) -> str:
    """One of GROUPS."""
    lower = name.lower()
    for group, parts in _PARTS.items():
        if any(part in lower for part in parts):
            return group
    return "other"
