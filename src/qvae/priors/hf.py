"""Any causal language model of Hugging Face as a prior, and our transformer as one of theirs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from qvae.errors import UsageError
from qvae.eval_mode import eval_mode
from qvae.networks.condition import Conditioner
from qvae.priors.attention import Block
from qvae.priors.base import Prior
from qvae.priors.draw import Choose
from qvae.priors.head import head_layout, hide_conditions
from qvae.priors.scoring import log_probs_loss
from qvae.priors.transformer import Transformer
from qvae.types import Batch, Loss

__all__ = ["HF", "to_gpt2"]

_LENGTHS = ("max_position_embeddings", "n_positions", "seq_length")
_NOT_KEPT = ("transformers_version", "auto_map", "_name_or_path", "dtype", "torch_dtype")


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "prior hf: needs transformers; install it with pip install 'qvae[llm]'"
        ) from None
    return transformers


@contextmanager
def _library_s_errors(model: str) -> Iterator[None]:
    """Turn whatever transformers raises for a model that it cannot make or run into a sentence."""
    try:
        yield
    except Exception as error:  # they have nothing in common
        raise ValueError(
            f"{model}: transformers cannot make or run this model ({error})"
        ) from error


class HF(Prior):
    """A causal language model from ``transformers`` whose words are tokens.

    The first input is a learned start plus the embedded condition, then come the tokens; the
    logits of token n are those of its codebook alone. Nothing is fetched: an architecture is
    described by its config, weights come from a local folder, and no code of a folder is run.

    Args:
        architecture: the model's config, such as ``{model_type: llama, hidden_size: 192, ...}``.
        path: instead, a local folder with a config and safetensors weights to start from. Its
            word embeddings and head are made anew: the words are not tokens.
        null_prob: share of training rows whose condition is hidden, in [0, 1].
        **tokens: what :class:`~qvae.priors.base.Prior` takes.

    Raises:
        UsageError: transformers is not installed.
        ValueError: both or neither of architecture and path, an unknown model type, one that
            sees later tokens or cannot be made, a folder that is not there, or a context shorter
            than a sample.

    Example:
        >>> tiny = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8,
        ...         "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> HF(architecture=tiny, vocab_size=8, num_tokens=4).sample(3, seed=0).shape
        torch.Size([3, 4])
    """

    head_rows: Int[Tensor, "K S"]
    head_mask: Float[Tensor, "K S"]

    def __init__(
        self,
        *,
        architecture: Mapping[str, Any] | None = None,
        path: str | None = None,
        null_prob: float = 0.1,
        **tokens: Any,
    ) -> None:
        super().__init__(**tokens)
        if (architecture is None) == (path is None):
            raise ValueError("architecture and path: give one of the two")
        if not 0 <= null_prob <= 1:
            raise ValueError(f"null_prob={null_prob}: must be in [0, 1]")
        self.null_prob = null_prob
        config = self._read_config(architecture, path)
        with _library_s_errors(config.model_type):
            self.model = self._make(config, path)
            is_causal = self._is_causal()
        if not is_causal:
            raise ValueError(
                f"model_type={config.model_type!r}: its first output changes with the second"
                " token, must be causal; some are with is_decoder: true in their config"
            )
        width = self.model.get_input_embeddings().weight.shape[1]
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.conditioner = Conditioner(self.conditions, dim=width) if self.conditions else None
        rows, mask = head_layout(self.codebook_sizes)
        self.register_buffer("head_rows", rows, persistent=False)
        self.register_buffer("head_mask", mask, persistent=False)
        facts = {k: v for k, v in config.to_diff_dict().items() if k not in _NOT_KEPT}
        # A saved model must not depend on a folder elsewhere.
        self.config = {"architecture": facts, "path": None}

    def _read_config(self, architecture: Mapping[str, Any] | None, path: str | None) -> Any:
        library = _library()
        if path is not None:
            if not (Path(path) / "config.json").is_file():
                raise ValueError(f"path={path!r}: needs a local folder with a config.json")
            with _library_s_errors(path):
                config = library.AutoConfig.from_pretrained(path, local_files_only=True)
        else:
            values = dict(architecture or {})
            kind = values.pop("model_type", None)
            if kind not in library.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
                raise ValueError(
                    f"architecture.model_type={kind!r}: must be a causal language model of"
                    " transformers, such as llama or gpt2"
                )
            with _library_s_errors(kind):
                config = library.AutoConfig.for_model(kind, **values)
        config.vocab_size = self.vocab_size
        config.bos_token_id = config.eos_token_id = config.pad_token_id = None
        for name in _LENGTHS:
            length = getattr(config, name, None)
            if length is not None and length < self.num_tokens:
                raise ValueError(
                    f"{name}={length}: the context is shorter than a sample of {self.num_tokens}"
                    " tokens"
                )
        return config

    def _make(self, config: Any, path: str | None) -> Any:
        maker = _library().AutoModelForCausalLM
        if path is None:
            return maker.from_config(config).float()
        model = maker.from_pretrained(
            path,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
        ).float()
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            nn.init.normal_(table.weight, std=0.02)
        return model

    @torch.no_grad()
    def _is_causal(self) -> bool:
        """Whether the first output ignores the second input: some of the library's models do not.

        Such a model would see the tokens that it has to guess.
        """
        ramp = torch.linspace(-1, 1, self.model.get_input_embeddings().weight.shape[1])
        inputs = torch.stack([torch.stack([ramp, ramp]), torch.stack([ramp, -ramp])])
        with eval_mode(self.model):
            first = self.model(inputs_embeds=inputs, use_cache=False).logits[:, 0]
        difference = float((first[0] - first[1]).abs().max())
        return difference <= 1e-4 * float(first.abs().max())

    def log_probs(
        self, tokens: Shaped[Tensor, "B N"], cond: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B N S"]:
        """Return log p of every digit, from one causal pass."""
        return self._log_probs(tokens.long(), self.check_cond(cond, len(tokens)))

    def forward(self, batch: Batch) -> Loss:
        """Return the objective; in training, hide conditions at random."""
        tokens, digits, is_told = self.read(batch.x, batch.lengths)
        cond = self.check_cond(batch.cond, len(digits))
        cond = hide_conditions(cond, self.null_prob, is_training=self.training)
        return log_probs_loss(self._log_probs(tokens, cond), digits, is_told)

    def _log_probs(self, tokens: Int[Tensor, "B N"], cond: Tensor) -> Float[Tensor, "B N S"]:
        words = self.model.get_input_embeddings()(tokens[:, :-1])
        inputs = torch.cat([self._first(cond).to(words.dtype), words], 1)
        logits = self.model(inputs_embeds=inputs, use_cache=False).logits
        books = torch.arange(self.num_tokens, device=self.device) % len(self.head_rows)
        rows = self.head_rows[books].expand(len(tokens), -1, -1)
        return (logits.float().gather(-1, rows) + self.head_mask[books]).log_softmax(-1)

    def _first(self, cond: Float[Tensor, "B M"]) -> Float[Tensor, "B 1 D"]:
        first = self.start.expand(len(cond), -1)
        if self.conditioner is not None:
            with torch.autocast(cond.device.type, enabled=False):
                first = first + self.conditioner(cond)
        return first[:, None]

    @torch.no_grad()
    def walk(
        self,
        cond: Float[Tensor, "B M"],
        choose: Choose,
        *,
        guidance: float = 1.0,
        needed: Sequence[bool] | None = None,
    ) -> Int[Tensor, "B N"]:
        """Decide token after token, with the model's own cache of keys and values if it has one."""
        num, books = len(cond), len(self.head_rows)
        is_guided = guidance != 1 and cond.shape[1] > 0
        if is_guided:
            cond = torch.cat([cond, torch.full_like(cond, torch.nan)])
        digits = torch.zeros(num, self.num_tokens, dtype=torch.long, device=self.device)
        inputs, cache = self._first(cond), None
        for n in range(self.num_tokens):
            if num == 0 or (needed is not None and not any(needed[n:])):
                break
            out = self.model(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            cache = getattr(out, "past_key_values", None)
            logits = out.logits[:, -1].float()[:, self.head_rows[n % books]]
            if is_guided:
                told, null = logits.chunk(2)
                logits = null + guidance * (told - null)
            digits[:, n] = choose(logits + self.head_mask[n % books], n)
            token = (digits[:, n] + self.low[n])[:, None]
            word = self.model.get_input_embeddings()(token.repeat(2, 1) if is_guided else token)
            # Without keys and values (state-space models, old ones) all is computed again.
            inputs = word if cache is not None else torch.cat([inputs, word], 1)
        return digits


@torch.no_grad()
def to_gpt2(prior: Transformer) -> Any:
    """Return our transformer as a stock GPT-2 of ``transformers``, the same function.

    Word ``vocab_size`` is the start. GPT-2 has biases, which are 0 here, and no conditions.

    Raises:
        ValueError: a prior with conditions, several codebooks, another order than raster, or
            rotary positions: stock GPT-2 has none of these.
        UsageError: transformers is not installed.
    """
    is_plain = prior.is_plain and len(prior.codebook_sizes) == 1 and prior.rope is None
    if prior.conditions or not is_plain:
        raise ValueError("prior: GPT-2 has no conditions, one codebook and learned positions")
    library, size = _library(), prior.vocab_size
    config = library.GPT2Config(
        vocab_size=size + 1,
        n_positions=prior.num_tokens,
        n_embd=prior.dim,
        n_layer=prior.num_layers,
        n_head=prior.num_heads,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=size,
        eos_token_id=None,
        suppress_tokens=[size],
    )
    model = library.GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    body = model.transformer
    body.wte.weight.copy_(torch.cat([prior.embedding.weight, prior.start[None]]))
    body.wpe.weight.copy_(prior.positions)
    body.ln_f.weight.copy_(prior.norm.weight)
    model.lm_head.weight.copy_(torch.cat([prior.head.weight, prior.start[None] * 0]))
    blocks = [block for block in prior.blocks if isinstance(block, Block)]
    for theirs, ours in zip(body.h, blocks, strict=True):
        theirs.ln_1.weight.copy_(ours.norm_attention.weight)
        theirs.ln_2.weight.copy_(ours.norm_mlp.weight)
        theirs.attn.c_attn.weight.copy_(ours.qkv.weight.t())
        theirs.attn.c_proj.weight.copy_(ours.attention_out.weight.t())
        theirs.mlp.c_fc.weight.copy_(ours.mlp_in.weight.t())
        theirs.mlp.c_proj.weight.copy_(ours.mlp_out.weight.t())
    return model
