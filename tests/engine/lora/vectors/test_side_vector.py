"""A norm's weight or table as the adapters in force make it: for each segment, and computed once."""

from __future__ import annotations

import torch

from engine.lora.side_path import InForce
from engine.lora.vectors import SideVector


def test_values_are_kept_while_the_same_adapters_meet() -> None:
    in_force, parameter = InForce(), torch.ones(4)
    vector = SideVector(in_force, parameter)
    for adapter_id in (1, 2):
        vector.add(adapter_id, torch.full((4,), float(adapter_id)))

    def values(*segments: tuple[tuple[int, float], ...]) -> torch.Tensor | None:
        in_force.segments = segments
        return vector()

    assert values() is values(()) is values(((3, 1.0),), ()) is None
    both = values(((1, 0.5), (3, 1.0)), (), ((1, 1.0), (2, -1.0)))
    assert both is not None
    assert both[:, 0].tolist() == [1.5, 1.0, 0.0]
    assert values(((1, 0.5),), (), ((1, 1.0), (2, -1.0))) is both
    assert values() is None
    alone = values(((2, 1.0),), ((2, 1.0), (3, 1.0)))
    assert alone is not None
    assert alone.tolist() == [3.0] * 4
    many = [((1, 1.0),), ()] * 20
    assert values(*many) is not values(*many)
    assert not vector.remove(2)
    vector.add(2, torch.zeros(4))  # another file under the same id
    again = values(((2, 1.0),))
    assert again is not None
    assert again.tolist() == [1.0] * 4
