"""Any causal language model of the transformers library: `hf:` and a folder or a hub id, random from
its config.json or with its weights. Code that lies beside them is never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models import gpt2, hugging_face
from forkcast_trainer.models.family import Family, Shape
from forkcast_trainer.models.parts import Head, Taps
from forkcast_trainer.models.structure import taps_of
from forkcast_wire.echo import first_line
from forkcast_wire.manifest import HUGGING_FACE, Model

if TYPE_CHECKING:
    from torch import Tensor, nn

_FIELD: Final = "spec.model.architecture"
#: Model types whose parameters are counted by one formula; True: with biases on q, k and v.
_GATED: Final = {"llama": False, "mistral": False, "qwen2": True, "qwen3": False}
_LARGE: Final = 1024.0
#: Whether the logits are the head's product alone, by module: found by trying, once.
_PRODUCTS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class HuggingFace(Family):
    """The config says all sizes; `spec.model.size` may only change the dropout."""

    @property
    def names(self) -> Sequence[str]:
        """For messages."""
        return (f"{HUGGING_FACE}<folder or hub id>",)

    def takes(self, architecture: str) -> bool:
        """By the prefix."""
        return architecture.startswith(HUGGING_FACE)

    def shape(self, model: Model, vocabulary: int | None, positions: int) -> Shape | None:
        """Of the kinds whose parameters are counted here, from the folder's config.json."""
        del vocabulary
        _refuse_sizes(model)
        config = hugging_face.read_config(_source(model))
        return None if config is None else _shape(config, positions)

    def build(
        self, model: Model, vocabulary: int, positions: int, seed: int, *, end: int | None = None
    ) -> nn.Module:
        """An AutoModelForCausalLM, tried on three ids. Its config says its end of text."""
        del end
        from transformers import AutoConfig, AutoModelForCausalLM

        _refuse_sizes(model)
        source = _source(model)
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # noqa: BLE001  a config is anybody's, and checked nowhere else
            raise hugging_face.unusable(_FIELD, source, error) from None
        changed = _dropouts(config, model)
        ids = int(getattr(config, "vocab_size", vocabulary))
        most = int(getattr(config, "max_position_embeddings", None) or positions)
        hugging_face.refuse_too_small(_FIELD, ids, most, vocabulary, positions)
        if model.init == "Pretrained":
            module = hugging_face.pretrained_module(AutoModelForCausalLM, _FIELD, source, **changed)
        else:
            for name, value in changed.items():
                setattr(config, name, value)
            try:
                module = hugging_face.random_module(_from_config, config, seed)
            except Exception as error:  # noqa: BLE001
                raise hugging_face.unusable(_FIELD, source, error) from None
        _try(module, source)
        return module

    def hidden(self, module: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the body gives."""
        hidden: Tensor = module.base_model(**inputs, use_cache=False)[0]
        return hidden

    def head(self, module: Any) -> Head | None:
        """None where logits are capped, scaled or made in another way: found by trying."""
        layer = module.get_output_embeddings()
        if layer is None or not _is_product(module):
            return None
        return Head(layer.weight, getattr(layer, "bias", None))

    def taps(self, module: Any) -> Taps | None:
        """By structure."""
        return taps_of(module)

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """The least: the config says them."""
        del shapes
        return 1, 1


def _source(model: Model) -> str:
    return model.architecture.removeprefix(HUGGING_FACE)


def _refuse_sizes(model: Model) -> None:
    for name in ("layers", "heads", "width"):
        if getattr(model.size, name) is not None:
            raise TrainerError(
                f"spec.model.size.{name}",
                f"{_source(model)}'s config.json says it",
                "remove it, or give a folder with another config.json",
            )


def _from_config(config: Any) -> nn.Module:
    import torch
    from transformers import AutoModelForCausalLM

    made: nn.Module = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, trust_remote_code=False
    )
    return made


def _dropouts(config: Any, model: Model) -> dict[str, float]:
    """The configuration's entries that spec.model.size.dropout changes."""
    wish = model.size.dropout
    if wish is None:
        return {}
    found = {
        name: wish
        for name, value in config.to_dict().items()
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float | int)
    }
    if not found:
        raise TrainerError("spec.model.size.dropout", "the model has none", "remove it")
    return found


def _try(module: Any, source: str) -> None:
    """Raises TrainerError if the module does not run, or looks at ids that come later."""
    import torch

    try:
        with torch.no_grad(), _evaluated(module):
            ids = torch.tensor([[0, 1, 0], [0, 1, 1]])
            early = module(input_ids=ids, use_cache=False).logits[:, :2]
    except Exception as error:  # noqa: BLE001  foreign code
        raise TrainerError(
            _FIELD, f"{source} cannot be run: {first_line(error)}", "give a causal language model"
        ) from None
    if not torch.allclose(early[0], early[1], rtol=1e-4, atol=1e-5):
        raise TrainerError(
            _FIELD, f"{source} sees the ids that it should predict", "give a causal language model"
        )


def _is_product(module: Any) -> bool:
    import torch
    from torch.nn import functional

    if module not in _PRODUCTS:
        layer = module.get_output_embeddings()
        with torch.no_grad(), _evaluated(module):
            # by a power of two, and so back to the bit: a cap does not show at the small logits
            # that untrained weights give
            layer.weight.mul_(_LARGE)
            try:
                ids = torch.tensor([[0, 1]], device=layer.weight.device)
                logits = module(input_ids=ids, use_cache=False).logits
                hidden = module.base_model(input_ids=ids, use_cache=False)[0]
                product = functional.linear(hidden, layer.weight, getattr(layer, "bias", None))
            finally:
                layer.weight.div_(_LARGE)
        same = logits.shape == product.shape
        _PRODUCTS[module] = same and torch.allclose(logits, product, rtol=1e-4, atol=1e-5)
    return _PRODUCTS[module]


class _evaluated:  # noqa: N801  a context
    """In evaluation mode, which is restored; no generator is drawn from."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._training = module, module.training

    def __enter__(self) -> None:
        self._module.eval()

    def __exit__(self, *_: object) -> None:
        self._module.train(self._training)


def _shape(config: Mapping[str, Any], positions: int) -> Shape | None:
    """Of a decoder with gated MLPs; None for other kinds."""
    kind = config.get("model_type")
    if kind == "gpt2":
        return gpt2.shape_of(config)
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    numbers = hugging_face.whole_numbers(config, *names, "vocab_size")
    if kind not in _GATED or numbers is None:
        return None
    layers, heads, width, inner, vocabulary = numbers
    each = config.get("head_dim") or (128 if kind == "qwen3" else width // heads)
    keys = config.get("num_key_value_heads") or heads
    matrices = 2 * width * (heads + keys) * each
    attention = matrices
    if _GATED[kind] or config.get("attention_bias"):
        attention += (heads + 2 * keys) * each
    if config.get("attention_bias"):
        attention += width
    if kind == "qwen3":
        attention += 2 * each
    mlp = 3 * width * inner + ((2 * inner + width) if config.get("mlp_bias") else 0)
    embeddings = vocabulary * width * (1 if config.get("tie_word_embeddings") else 2)
    return Shape(
        layers=layers,
        heads=heads,
        width=width,
        positions=config.get("max_position_embeddings") or positions,
        vocabulary=vocabulary,
        parameters=embeddings + width + layers * (attention + mlp + 2 * width),
        matrices=layers * (matrices + 3 * width * inner),
    )
