from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from maskshards.shards.batch import CropBatch
from maskshards.shards.order.order import World
from maskshards.train.config.schema import GuardConfig, OptimizerConfig
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.optim.optimizer import build_optimizer, clip_gradients
from maskshards.train.trainer.diagnosis import Diagnosis, Seen
from maskshards.train.trainer.guards import Guard, GuardError


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).square().sum()


def crops(keys: tuple[str, ...] = ("a", "b"), first: int = 0, value: float = 1.0) -> CropBatch:
    size = len(keys)
    images = torch.randn(size, 3, 4, 4) * value
    owner_map = torch.zeros(size, 4, 4, dtype=torch.int16)
    return CropBatch(
        images, owner_map, torch.zeros(size, 1, dtype=torch.int64), keys, tuple(range(first, first + size))
    )


def take(head: Head, guard: Guard, optimizer: torch.optim.Optimizer, batch: CropBatch, step: int = 1) -> None:
    guard.begin_step()
    total = head(batch.images)
    guard.resolve()
    optimizer.zero_grad()
    total.backward()
    guard.after_backward()
    guard.watch(step, clip_gradients(head, 1.0), [Seen(batch, total.detach())])
    optimizer.step()


def make(tmp_path: Path, **config: object) -> tuple[Head, Guard, torch.optim.Optimizer]:
    torch.manual_seed(0)
    head = Head()
    optimizer = build_optimizer(head, OptimizerConfig())
    ranks = Ranks(World(), torch.device("cpu"))
    diagnosis = Diagnosis(ranks, head, head, lambda crops: head(crops.images), tmp_path)
    return head, Guard(GuardConfig(**config), head, optimizer, diagnosis), optimizer  # type: ignore[arg-type]


def test_sound_steps_pass_in_silence(tmp_path: Path) -> None:
    head, guard, optimizer = make(tmp_path)
    before = head.conv.weight.clone()
    take(head, guard, optimizer, crops())
    guard.resolve()
    assert not torch.equal(head.conv.weight, before)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_gradient_stops_names_and_changes_no_weight(tmp_path: Path) -> None:
    head, guard, optimizer = make(tmp_path)
    before = head.conv.weight.clone()
    take(head, guard, optimizer, crops(("sky", "sea"), first=8, value=float("nan")), step=7)
    assert torch.equal(head.conv.weight, before)
    with pytest.raises(NonFiniteError, match=r"(?s)step 7: .*conv\.weight.*images sky, sea; .*position8"):
        guard.resolve()
    with safe_open(tmp_path / "step7-position8.safetensors", "pt") as file:
        assert file.metadata()["keys"] == "sky\nsea"
        assert file.get_tensor("images").shape == (2, 3, 4, 4)


def test_skip_leaves_weights_and_statistics_as_they_were_and_goes_on(tmp_path: Path) -> None:
    head, guard, optimizer = make(tmp_path, non_finite="skip")
    take(head, guard, optimizer, crops())
    before = {name: value.clone() for name, value in head.state_dict().items()}
    take(head, guard, optimizer, crops(value=float("inf")), step=2)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    take(head, guard, optimizer, crops(), step=3)
    assert guard.skipped == 1
    assert torch.isfinite(head.conv.weight).all()
    assert not torch.equal(head.conv.weight, before["conv.weight"])


def test_skip_has_its_limit(tmp_path: Path) -> None:
    head, guard, optimizer = make(tmp_path, non_finite="skip", max_skipped=1)
    take(head, guard, optimizer, crops(value=float("nan")))
    take(head, guard, optimizer, crops(value=float("nan")), step=2)
    with pytest.raises(NonFiniteError, match="max_skipped"):
        guard.resolve()


def test_a_parameter_without_gradient_is_named(tmp_path: Path) -> None:
    head, guard, _ = make(tmp_path)
    head.conv(torch.ones(1, 3, 2, 2)).sum().backward()
    with pytest.raises(GuardError, match=r"2 trainable .* norm\.weight, norm\.bias"):
        guard.after_backward()


def test_batch_norms_must_learn(tmp_path: Path) -> None:
    head, guard, _ = make(tmp_path)
    head.norm.eval()
    with pytest.raises(GuardError, match=r"norm.*eval mode"):
        guard.begin_step()


@pytest.mark.parametrize("brought", [0.0, 1.0])
def test_a_flag_that_was_brought_is_believed_and_not_read_again(tmp_path: Path, brought: float) -> None:
    head, _, optimizer = make(tmp_path)
    said = []
    guard = Guard(
        GuardConfig(non_finite="skip"), head, optimizer, lambda *_: said.append(1) or "", flag_with_loss=True
    )
    assert guard.flag is None
    take(head, guard, optimizer, crops())
    assert guard.flag is not None
    assert guard.flag.tolist() == [0.0]
    guard.resolve(brought)
    assert len(said) == guard.skipped == int(brought)
    assert guard.flag is None


def test_without_such_a_loss_no_flag_goes_with_it(tmp_path: Path) -> None:
    head, guard, optimizer = make(tmp_path)
    take(head, guard, optimizer, crops())
    assert guard.flag is None
