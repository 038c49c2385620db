"""Laws of the networks that compute each pixel from its place."""

import math

import pytest
import torch

from qvae.networks.coord import CoordDecoder, CoordEncoder

TURNS = ((0, 1), (2, 3))
INK = torch.tensor([0.9, 0.1, 0.4])


def told(first: float, second: float) -> torch.Tensor:
    """Return the sine and cosine of two angles, and a column that is none."""
    return torch.tensor(
        [[math.sin(first), math.cos(first), math.sin(second), math.cos(second), 0.0]]
    )


def bar(angle: float) -> torch.Tensor:
    """Paint a hand from the middle of a grey picture, clockwise from upright."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    along = x * math.sin(angle) - y * math.cos(angle)
    across = x * math.cos(angle) + y * math.sin(angle)
    is_ink = (across.abs() < 0.1) & (along > 0.05) & (along < 0.4)
    return torch.where(is_ink, INK[:, None, None], torch.full((3, 1, 1), 0.5))[None]


def encoder(**options: int) -> CoordEncoder:
    torch.manual_seed(0)
    return CoordEncoder((3, 64, 64), cond_dim=5, turns=TURNS, **options)


@pytest.mark.parametrize("frame", [0, 1])
@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5, -1.9])
def test_keeps_the_colour_of_what_turns(frame: int, angle: float) -> None:
    """At every angle, and whichever of the two angles it follows; the weights have no say."""
    angles = [1.3, 1.3]
    angles[frame] = angle
    z = encoder()(bar(angle), told(*angles)).flatten()
    kept = z[:12].view(3, 4)[:, 2 * frame]  # channels x (either sense of either angle)
    assert torch.allclose(kept, 1.5 * (2 * INK - 1), atol=1e-5)


def test_the_other_sense_sees_the_ground() -> None:
    z = encoder()(bar(0.8), told(0.8, 2.9)).flatten()
    assert torch.allclose(z[:12].view(3, 4)[:, 1:], torch.zeros(3, 3), atol=1e-5)


def test_without_a_condition_nothing_is_kept() -> None:
    coder = CoordEncoder((3, 32, 32), latents=2)
    assert coder(torch.rand(4, 3, 32, 32), None).shape == (4, 1, 2)


def test_refuses_too_few_latents() -> None:
    with pytest.raises(ValueError, match="latents=12: .*more than the 12 numbers"):
        encoder(latents=12)
    assert encoder(latents=13)(bar(0.0), told(0.0, 0.0)).shape == (1, 1, 13)
    assert encoder(latents=7, latent_dim=2)(bar(0.0), told(0.0, 0.0)).shape == (1, 2, 7)


def test_refuses_pictures_that_are_no_multiple() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        CoordEncoder((3, 40, 64))
    with pytest.raises(ValueError, match="multiples of 2"):
        CoordDecoder((3, 33, 32), grid=(8,))


def test_draws_the_same_picture_a_turn_later() -> None:
    torch.manual_seed(0)
    decoder = CoordDecoder((3, 32, 32), grid=(8,), cond_dim=5, turns=TURNS)
    z = torch.randn(1, 1, 8)
    first, again, other = (
        decoder(z, told(angle, 0.3)) for angle in (0.4, 0.4 + 2 * math.pi, 0.4 + math.pi)
    )
    assert torch.allclose(first, again, atol=1e-4)
    assert (first - other).abs().max() > 1e-3
