"""A language model as a folder that ``transformers`` loads with no code of ours, and back.

config.json             stock Llama, and our vocabulary under "qvae"
model.safetensors       stock names, float32; q, k, v and gate, up apart; norms of ones
tokenizer.json          of the ``tokenizers`` library, words and image tokens
tokenizer_config.json, generation_config.json
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qvae.errors import FormatError
from qvae.llm.layers import LlamaBlock
from qvae.llm.llama import MAX_LENGTH, Llama
from qvae.llm.tables import FreeTable
from qvae.llm.vocabulary import CONFIG_KEY, Vocabulary
from qvae.llm.words import SPECIAL, WordTokenizer
from qvae.store import read_json, save_folder

__all__ = ["load_llm", "save_llm", "stock_weights"]

_LAYER = {
    "attention_out": "self_attn.o_proj",
    "down": "mlp.down_proj",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
}
"""Our part of a block -> its stock name."""


def stock_weights(model: Llama) -> dict[str, Tensor]:
    """Write a model's weights out under the names of ``LlamaForCausalLM``."""
    ones = torch.ones(model.dim)
    found = {"model.embed_tokens.weight": model.embedding.rows(), "model.norm.weight": ones}
    if not model.is_tied:
        found["lm_head.weight"] = model.head.rows()
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, LlamaBlock)
        parts = dict(zip("qkv", layer.qkv.weight.chunk(3), strict=True))
        parts |= dict(zip(("gate", "up"), layer.gate_up.weight.chunk(2), strict=True))
        parts |= {"attention_out": layer.attention_out.weight, "down": layer.down.weight}
        prefix = f"model.layers.{index}"
        found |= {f"{prefix}.{_LAYER[part]}.weight": value for part, value in parts.items()}
        found[f"{prefix}.input_layernorm.weight"] = ones
        found[f"{prefix}.post_attention_layernorm.weight"] = ones
    return {name: tensor.detach().float() for name, tensor in found.items()}


def save_llm(model: Llama, tokenizer: WordTokenizer, path: str | Path) -> None:
    """Write the folder, whole or not at all.

    Args:
        model: what was trained.
        tokenizer: of its text, with the image tokens.
        path: an old folder there is replaced.
    """
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = {
        **model.config(),
        **ids,
        "max_position_embeddings": MAX_LENGTH,
        "torch_dtype": "float32",
        "use_cache": True,
        CONFIG_KEY: model.vocabulary.to_json(),
    }
    pad, bos, eos, unk = SPECIAL
    about_text = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "unk_token": unk,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH,
    }
    files = {
        "tokenizer.json": tokenizer.to_json(),
        "tokenizer_config.json": json.dumps(about_text, indent=1) + "\n",
        "generation_config.json": json.dumps(ids, indent=1) + "\n",
    }
    save_folder(Path(path), stock_weights(model), config, files=files)


def load_llm(path: str | Path) -> tuple[Llama, WordTokenizer]:
    """Read a folder back, in eval mode on the CPU.

    The shared tables are not in it; codes come back as rows of their own, so the model computes
    the same and can decode, and training goes on from a run's ``state/`` only.

    Raises:
        FormatError: a missing or damaged file, or a model that is no Llama with image tokens.
    """
    path = Path(path)
    vocabulary = Vocabulary.from_pretrained(path)
    config = read_json(path / "config.json")
    try:
        weights = load_file(path / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path / 'model.safetensors'}: cannot be read ({error})") from None
    try:
        model = _build(vocabulary, config)
        _load_weights(model, weights)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: not a Llama of ours ({error})") from None
    return model.eval(), WordTokenizer.from_file(path / "tokenizer.json")


def _build(vocabulary: Vocabulary, config: dict[str, Any]) -> Llama:
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    config = {**config, "rope_theta": theta}  # transformers 5 writes it the other way
    model = Llama(
        vocabulary,
        num_layers=config["num_hidden_layers"],
        dim=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        hidden_dim=config["intermediate_size"],
        rope_theta=theta,
        is_tied=config["tie_word_embeddings"],
    )
    wrong = {key: config.get(key) for key, value in model.config().items() if config[key] != value}
    if wrong:
        raise ValueError(f"config differs in {wrong}")
    return model


def _load_weights(model: Llama, weights: dict[str, Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in stock_weights(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted({name for name, _ in wanted.items() ^ found.items()})
    if wrong:
        raise ValueError(f"weights differ in {', '.join(wrong[:4])}")
    model.embedding = FreeTable(weights["model.embed_tokens.weight"])
    model.head = model.embedding if model.is_tied else FreeTable(weights["lm_head.weight"])
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, LlamaBlock)
        names = {part: f"model.layers.{index}.{name}.weight" for part, name in _LAYER.items()}
        parts = {part: weights[name] for part, name in names.items()}
        layer.load_state_dict(
            {
                "qkv.weight": torch.cat([parts["q"], parts["k"], parts["v"]]),
                "gate_up.weight": torch.cat([parts["gate"], parts["up"]]),
                "attention_out.weight": parts["attention_out"],
                "down.weight": parts["down"],
            }
        )
