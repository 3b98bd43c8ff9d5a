"""The linear head: published keys, forward pass, channel dropout."""

import torch
import torch.nn.functional as F

from maskshards.train.model.heads.linear import LinearHead


def test_keys_and_shapes() -> None:
    found = {name: tuple(t.shape) for name, t in LinearHead(24, 7).state_dict().items()}
    assert found == {
        "batchnorm_layer.weight": (24,),
        "batchnorm_layer.bias": (24,),
        "batchnorm_layer.running_mean": (24,),
        "batchnorm_layer.running_var": (24,),
        "batchnorm_layer.num_batches_tracked": (),
        "conv.weight": (7, 24, 1, 1),
        "conv.bias": (7,),
    }


def test_maps_are_resized_to_the_first_concatenated_normed_and_projected() -> None:
    torch.manual_seed(0)
    head = LinearHead(6, 4).double()
    head(tuple(torch.randn(8, 3, 4, 5, dtype=torch.float64) for _ in range(2)))  # moves the statistics
    head.eval()
    a, b = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    x = torch.cat((a, F.interpolate(b, (4, 5), mode="bilinear", align_corners=False)), 1)
    norm = head.batchnorm_layer
    x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    expected = torch.einsum("kc,bchw->bkhw", head.conv.weight[:, :, 0, 0], x) + head.conv.bias[:, None, None]
    torch.testing.assert_close(head((a, b)), expected, rtol=1e-10, atol=1e-10)


def test_a_dropped_channel_is_zero_before_the_norm() -> None:
    torch.manual_seed(0)
    head = LinearHead(3, 2).eval()
    features = torch.randn(2, 3, 4, 4)
    keep = torch.tensor([[1.0, 0.0, 1.0], [2.0, 1.0, 1.0]])
    expected = head((features * keep[:, :, None, None],))
    assert torch.equal(head((features,), keep), expected)
    assert not torch.equal(head((features,)), expected)


def test_initial_values() -> None:
    torch.manual_seed(0)
    head = LinearHead(512, 150)
    assert abs(head.conv.weight.std().item() - 0.01) < 2e-4
    assert not head.conv.bias.any()
