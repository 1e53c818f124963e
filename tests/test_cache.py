"""The cache's room."""

from __future__ import annotations

import pytest
import torch

from specdec.cache import ROOM_STEP, LayerShape, TreeCache


@pytest.mark.parametrize(("device", "rooms"), [("cpu", (0, 1, 256, 257)), ("meta", (0, ROOM_STEP, ROOM_STEP, 512))])
def test_kernels_on_a_device_see_few_numbers_of_places(device: str, rooms: tuple[int, ...]) -> None:
    for asked, room in zip((0, 1, 256, 257), rooms, strict=True):
        cache = TreeCache([LayerShape(2, 4, 3, torch.float32)] * 3, 5, asked, torch.device(device))
        assert cache.room == room
        assert cache.keys[2].shape == (5, 2, room, 4)
        assert cache.values[0].shape == (5, 2, room, 3)
