"""Language models of ``transformers`` as priors: without a cache, and which are refused."""

import pytest
import torch

from prior_work import COND, LLAMA, make, random_tokens


def test_a_language_model_without_keys_and_values_is_sampled_too():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    prior = make({"name": "hf", "architecture": {"model_type": "mamba", **sizes}})
    tokens = prior.sample(2, COND[:2], temperature=0.0, guidance=2.0)
    told, null = prior.log_probs(tokens, COND[:2]), prior.log_probs(tokens)
    logits = null + 2 * (told - null)
    best = logits.masked_fill(logits.isnan(), -torch.inf).argmax(-1)  # -inf less -inf: too short
    assert torch.equal(tokens - prior.low, best)


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_a_language_model_that_sees_later_tokens_is_refused(kind):
    architecture = {**LLAMA, "model_type": kind}
    with pytest.raises(ValueError, match=f"model_type='{kind}': its first output changes"):
        make({"name": "hf", "architecture": architecture})
    prior = make({"name": "hf", "architecture": {**architecture, "is_decoder": True}})
    first, other = (prior.log_probs(random_tokens(prior, 3), COND)[:, 0] for _ in range(2))
    torch.testing.assert_close(first, other)  # whatever comes later


@pytest.mark.parametrize(
    "wrong",
    [{"hidden_size": "wide"}, {"num_attention_heads": 3, "model_type": "bert"},
     {"model_type": "roberta", "is_decoder": True}],
)  # fmt: skip
def test_a_language_model_that_the_library_cannot_make_is_refused_in_a_sentence(wrong):
    with pytest.raises(ValueError, match="transformers cannot make or run this model"):
        make({"name": "hf", "architecture": {**LLAMA, **wrong}})
