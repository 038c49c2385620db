"""Laws of the encoder and decoder pairs."""

import pytest
import torch
from torch.nn import functional as F

from qvae.networks import (
    ConvDecoder,
    ConvEncoder,
    MLPDecoder,
    MLPEncoder,
    PatchDecoder,
    PatchEncoder,
)
from qvae.networks.layers import Attention, FiLM, conv_transpose

COND_DIM = 5
SMALL = {"hidden": 16, "residual": 8}
# name -> (encoder, decoder, shape, arguments of the encoder, of the decoder, expected grid)
PAIRS = {
    "conv-1d": (ConvEncoder, ConvDecoder, (2, 32), SMALL, SMALL, (8,)),
    "conv-2d": (ConvEncoder, ConvDecoder, (3, 16, 24), SMALL, SMALL, (4, 6)),
    "conv-3d": (ConvEncoder, ConvDecoder, (1, 8, 8, 4), SMALL, SMALL, (2, 2, 1)),
    "conv-axes": (
        ConvEncoder,
        ConvDecoder,
        (1, 12, 8),
        SMALL | {"downsample": [1, 8]},
        SMALL | {"downsample": [1, 8]},
        (12, 1),
    ),
    "conv-1x": (
        ConvEncoder,
        ConvDecoder,
        (1, 5, 7),
        SMALL | {"downsample": 1},
        SMALL | {"downsample": 1},
        (5, 7),
    ),
    "conv-one": (ConvEncoder, ConvDecoder, (3, 16, 16), SMALL | {"latents": 1}, SMALL, ()),
    "conv-12": (ConvEncoder, ConvDecoder, (3, 16, 16), SMALL | {"latents": 12}, SMALL, (12,)),
    "conv-bare": (
        ConvEncoder,
        ConvDecoder,
        (3, 8, 8),
        {"hidden": 8, "num_blocks": 0, "latents": 3},
        {"hidden": 8, "num_blocks": 0},
        (3,),
    ),
    "mlp-1d": (MLPEncoder, MLPDecoder, (2, 9), {"hidden": [20]}, {"hidden": [20]}, ()),
    "mlp-2d": (MLPEncoder, MLPDecoder, (1, 5, 7), {"latents": 3}, {"activation": "silu"}, (3,)),
    "mlp-vector": (MLPEncoder, MLPDecoder, (6,), {"hidden": []}, {"hidden": []}, ()),
    "patch-1d": (PatchEncoder, PatchDecoder, (2, 12), {"patch": 3}, {"patch": 3}, (4,)),
    "patch-2d": (
        PatchEncoder,
        PatchDecoder,
        (3, 12, 8),
        {"patch": [3, 4], "hidden": 16},
        {"patch": [3, 4], "hidden": 16},
        (4, 2),
    ),
    "patch-transformer": (
        PatchEncoder,
        PatchDecoder,
        (1, 8, 8),
        {"hidden": 16, "num_layers": 2},
        {"hidden": 16, "num_layers": 1},
        (2, 2),
    ),
    "patch-3d": (
        PatchEncoder,
        PatchDecoder,
        (1, 4, 4, 4),
        {"patch": 2, "num_layers": 1},
        {"patch": 2},
        (2, 2, 2),
    ),
}


def build(name, cond_dim=0, out_channels=None):
    encoder_class, decoder_class, shape, enc, dec, _ = PAIRS[name]
    encoder = encoder_class(shape, cond_dim=cond_dim, **enc)
    out_shape = (out_channels or shape[0], *shape[1:])
    decoder = decoder_class(out_shape, grid=encoder.grid, cond_dim=cond_dim, **dec)
    return encoder, decoder, shape


def run(encoder, decoder, x, cond=None):
    z = encoder(x, cond)
    return z, decoder(z if z.shape[1] == decoder.in_dim else z[:, : decoder.in_dim], cond)


@pytest.mark.parametrize("cond_dim", [0, COND_DIM])
@pytest.mark.parametrize("name", PAIRS)
def test_shapes_are_what_the_attributes_say(name, cond_dim):
    encoder, decoder, shape = build(name, cond_dim, out_channels=4)
    assert encoder.grid == PAIRS[name][-1]
    cond = torch.randn(3, cond_dim) if cond_dim else None
    z, params = run(encoder, decoder, torch.rand(3, *shape), cond)
    assert z.shape == (3, encoder.out_dim, *encoder.grid)
    assert params.shape == (3, 4, *shape[1:])


@pytest.mark.parametrize("name", PAIRS)
def test_samples_do_not_meet_and_the_condition_matters(name):
    encoder, decoder, shape = build(name, COND_DIM)
    x, cond = torch.rand(3, *shape), torch.randn(3, COND_DIM)
    z, params = run(encoder, decoder, x, cond)
    z_one, params_one = run(encoder, decoder, x[1:2], cond[1:2])
    torch.testing.assert_close(z[1:2], z_one, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(params[1:2], params_one, rtol=1e-4, atol=1e-5)
    other = encoder(x, cond + 1)
    assert (other - z).abs().amax(dim=tuple(range(1, z.ndim))).min() > 1e-4
    assert not torch.allclose(decoder(z[:, : decoder.in_dim], cond + 1), params, atol=1e-4)


@pytest.mark.parametrize("cond_dim", [0, COND_DIM])
@pytest.mark.parametrize("name", PAIRS)
def test_every_parameter_gets_a_gradient(name, cond_dim):
    encoder, decoder, shape = build(name, cond_dim)
    cond = torch.randn(4, cond_dim) if cond_dim else None
    _, params = run(encoder, decoder, torch.rand(4, *shape), cond)
    params.square().sum().backward()
    for module in (encoder, decoder):
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ["conv-2d", "conv-12", "patch-transformer", "mlp-2d"])
def test_bfloat16_autocast_and_channels_last_change_little(name):
    encoder, decoder, shape = build(name, COND_DIM)
    x, cond = torch.rand(2, *shape), torch.randn(2, COND_DIM)
    _, exact = run(encoder, decoder, x, cond)
    for module in (encoder, decoder):
        module.to(memory_format=torch.channels_last)
    _, last = run(encoder, decoder, x.to(memory_format=torch.channels_last), cond)
    torch.testing.assert_close(last, exact, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        _, half = run(encoder, decoder, x, cond)
    assert (half.float() - exact).abs().max() < 0.1 * exact.abs().max() + 0.02


@pytest.mark.parametrize("name", PAIRS)
def test_the_output_keeps_the_scale(name):
    encoder, decoder, shape = build(name)
    with torch.no_grad():
        params = decoder(torch.randn(16, decoder.in_dim, *encoder.grid))
    assert 0.01 < params.std() < 2


@pytest.mark.parametrize("name", ["patch-1d", "patch-2d", "mlp-vector"])
def test_without_layers_a_pair_is_exactly_linear(name):
    encoder, decoder, shape = build(name)

    def go(x):
        return run(encoder.double(), decoder.double(), x)[1]

    a, b = torch.randn(2, 2, *shape, dtype=torch.float64)
    zero = go(torch.zeros_like(a))
    torch.testing.assert_close(go(2 * a - 3 * b) - zero, 2 * (go(a) - zero) - 3 * (go(b) - zero))


def test_a_linear_patch_encoder_sees_one_patch_at_a_time():
    encoder = PatchEncoder((1, 8, 8), patch=4, hidden=16)
    x = torch.rand(1, 1, 8, 8)
    changed = x.clone()
    changed[..., :4, 4:] = 0
    difference = (encoder(changed) - encoder(x)).abs().sum(dim=1)[0]
    assert difference[0, 1] > 0.01 and difference[[0, 1, 1], [0, 0, 1]].max() == 0
    torch.testing.assert_close(encoder(x.roll(4, dims=-1)), encoder(x).roll(1, dims=-1))


def test_patch_linear_equals_a_matrix_on_unfolded_patches():
    encoder = PatchEncoder((2, 6, 8), patch=(3, 4), hidden=7)
    x = torch.rand(3, 2, 6, 8)
    rows = F.unfold(x, (3, 4), stride=(3, 4)).transpose(1, 2)
    expected = rows @ encoder.embed.weight.flatten(1).T + encoder.embed.bias
    torch.testing.assert_close(encoder(x).flatten(2).transpose(1, 2), expected)


def test_transformer_patches_see_each_other_and_their_places():
    encoder = PatchEncoder((1, 8, 8), patch=4, hidden=16, num_layers=1)
    x = torch.rand(1, 1, 8, 8)
    changed = x.clone()
    changed[..., :4, 4:] = 0
    assert (encoder(changed) - encoder(x)).abs().sum(dim=1).min() > 1e-4
    flat = encoder(torch.full((1, 1, 8, 8), 0.5)).flatten(2)[0]
    assert (flat[:, 0] - flat[:, 1]).abs().max() > 1e-4


def test_attention_equals_the_fused_kernel():
    attention = Attention(12, num_heads=3)
    x = torch.randn(2, 5, 12)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in (q, k, v))
    fused = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.out(fused))


def test_film_is_scale_and_shift():
    film = FiLM(3, cond_dim=2)
    h, cond = torch.randn(4, 3, 5, 6), torch.randn(4, 2)
    gamma, beta = film.linear(cond)[..., None, None].chunk(2, dim=1)
    torch.testing.assert_close(film(h, cond), (1 + gamma) * h + beta)


def test_conv_is_the_paper_s_network():
    encoder, decoder = ConvEncoder((3, 32, 32)), ConvDecoder((3, 32, 32), grid=(8, 8))

    def sizes(module):
        return [tuple(p.shape) for key, p in module.named_parameters() if key.endswith("weight")]

    block = [(32, 128, 3, 3), (128, 32, 1, 1)]
    assert sizes(encoder) == [(64, 3, 4, 4), (128, 64, 4, 4), (128, 128, 3, 3), *block, *block]
    assert sizes(decoder) == [(128, 128, 3, 3), *block, *block, (128, 64, 4, 4), (64, 3, 4, 4)]


def test_transposed_convolution_keeps_the_variance_of_a_linear_layer():
    torch.manual_seed(1)
    x = torch.randn(64, 128, 4, 4)
    linear = torch.nn.Linear(128, 64)(x.movedim(1, -1)).std()
    for kernel, stride, padding in (((4, 4), 4, 0), ((4, 4), 2, 1)):
        layer = conv_transpose(128, 3, kernel, stride=stride, padding=padding)
        assert 0.7 < layer(x).std() / linear < 1.3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ConvEncoder((3, 32, 30)), ["axis 1", "30", "downsample=4"]),
        (lambda: ConvEncoder((3, 32, 32), downsample=6), ["downsample=6", "power of two"]),
        (lambda: ConvEncoder((3, 32, 32), downsample=[2, 2, 2]), ["3 numbers for 2"]),
        (lambda: ConvEncoder((3,)), ["0 spatial axes"]),
        (lambda: ConvEncoder((3, 8, 8), hidden=0), ["hidden=0"]),
        (lambda: ConvEncoder((3, 8, 8), num_blocks=-1), ["num_blocks=-1"]),
        (lambda: ConvEncoder((3, 8, 8), latents=0), ["latents=0"]),
        (lambda: ConvEncoder((3, 8, 8), num_blocks=0, cond_dim=5), ["num_blocks=0", "cond_dim=5"]),
        (lambda: ConvDecoder((3, 8, 8), grid=(2, 2), num_blocks=0, cond_dim=5), ["num_blocks=0"]),
        (lambda: ConvEncoder((3, 8, 8))(torch.zeros(1, 1, 8, 8)), ["(1, 8, 8)", "(3, 8, 8)"]),
        (lambda: ConvDecoder((3, 32, 32), grid=(4, 4)), ["(4, 4)", "(8, 8)"]),
        (lambda: PatchEncoder((1, 28, 28), patch=5), ["axis 0", "28", "patch=5"]),
        (lambda: PatchEncoder((1, 28, 28), patch=0), ["patch=0"]),
        (lambda: PatchDecoder((1, 28, 28), grid=(), patch=4), ["()", "(7, 7)"]),
        (
            lambda: PatchEncoder((1, 8, 8), hidden=10, num_layers=1, num_heads=4),
            ["num_heads=4", "10"],
        ),
        (lambda: MLPEncoder((1, 8), activation="gelu"), ["'gelu'", "relu, tanh, silu"]),
        (lambda: MLPEncoder((1, 8), hidden=[4, 0]), ["hidden=[4, 0]"]),
        (lambda: MLPDecoder((1, 8), grid=(), latent_dim=0), ["latent_dim=0"]),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)
