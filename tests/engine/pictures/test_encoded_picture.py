"""What images start from and what stays of a picture, number by number."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.pictures.encoded_picture import EncodedPicture, KeptParts

LEVELS = st.integers(0, 256).map(lambda part: part / 256)  # of noise
ODD = torch.tensor([[0.0, -0.0, 1.0, float("inf"), float("nan"), -2.5]])


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.view(torch.int32).flatten().tolist()


def test_all_noise_and_none_are_to_the_bit() -> None:
    """Whatever the other is: the noise has negative zeros, and a picture may be encoded to anything."""
    other = ODD.roll(1, dims=1)
    assert bits(EncodedPicture(ODD).with_noise(other, 1.0)) == bits(other)
    assert bits(EncodedPicture(ODD).with_noise(other, 0.0)) == bits(ODD)


@given(LEVELS)
def test_noise_is_mixed_in_linearly(sigma: float) -> None:
    latents, noise = torch.randn(2, 5, 4)
    mixed = EncodedPicture(latents).with_noise(noise, sigma)
    exact = sigma * noise.double() + (1 - sigma) * latents.double()
    assert (mixed.double() - exact).abs().max() < 1e-6


@given(LEVELS.filter(bool), LEVELS, st.integers(0, 255))
def test_the_picture_comes_back_where_the_mask_is_below_the_step_s_noise_level(
    sigma: float, sigma_next: float, grey: int
) -> None:
    stepped, noise, clean = torch.randn(3, 2, 3)
    mask = torch.tensor([[255, grey, 0], [0, grey, 255]]).float() / 255
    picture = EncodedPicture(clean, mask)
    result = KeptParts(picture, noise).put_back(stepped, sigma, sigma_next)
    kept = picture.with_noise(noise, sigma_next)
    grey_joins = grey / 255 >= sigma
    expected = [[stepped[0, 0], (stepped if grey_joins else kept)[0, 1], kept[0, 2]]]
    expected += [[kept[1, 0], (stepped if grey_joins else kept)[1, 1], stepped[1, 2]]]
    assert torch.equal(result, torch.tensor(expected))


def test_what_is_repainted_spoils_nothing_that_stays() -> None:
    stepped = torch.full((1, 2), float("nan"))
    kept = KeptParts(EncodedPicture(torch.ones(1, 2), torch.tensor([[1.0, 0.0]])), torch.zeros(1, 2))
    assert kept.put_back(stepped, 0.5, 0.0)[0, 1] == 1.0
