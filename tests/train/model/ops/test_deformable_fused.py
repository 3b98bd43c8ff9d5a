"""The door to the fused kernels."""

import pytest
import torch

from maskshards.train.model.ops.deformable_fused import deformable_attention_kernel


def test_shapes_that_do_not_add_up_are_refused() -> None:
    value, locations = torch.zeros(1, 7, 2, 4), torch.zeros(1, 3, 2, 2, 1, 2)
    for shapes in (((2, 2), (2, 1)), ((7, 1),)):
        with pytest.raises(ValueError, match="expected 2 levels and 7 places"):
            deformable_attention_kernel(value, shapes, locations, locations[..., 0])
