import math

import numpy as np
import pytest
import torch

from maskshards.train.evaluation.metrics import METRICS, ConfusionMatrix, score


def _counted(pairs, num_classes):
    matrix = ConfusionMatrix(num_classes)
    for prediction, label in pairs:
        matrix.update(torch.as_tensor(prediction), torch.as_tensor(label))
    return matrix


def _random_pairs(seed, num_classes, present, count=3):
    """Maps over the classes in `present` only, a tenth of the labels ignored."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        shape = tuple(rng.integers(5, 20, size=2))
        label = rng.choice(present, size=shape)
        prediction = np.where(rng.random(shape) < 0.6, label, rng.choice(present, size=shape))
        pairs.append((prediction, np.where(rng.random(shape) < 0.1, 255, label)))
    return pairs


def _by_pixel_loop(pairs, num_classes):
    """Intersection, prediction and label pixels per class, the slow and obvious way."""
    inter, pred, lab = [0] * num_classes, [0] * num_classes, [0] * num_classes
    for prediction, label in pairs:
        for p, g in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
            if g == 255:
                continue
            pred[p] += 1
            lab[g] += 1
            inter[g] += p == g
    return inter, pred, lab


def test_the_published_example_of_hugging_face_evaluate():
    # The usage example of evaluate's mean_iou metric, inputs and outputs as its page gives them.
    predicted = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    actual = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    pairs = zip(map(np.array, predicted), map(np.array, actual), strict=True)
    result = _counted(pairs, 10).result([str(i) for i in range(10)])
    assert result.miou == pytest.approx(47.750000000000004)
    assert result.mean_accuracy == pytest.approx(59.16666666666666)
    assert result.pixel_accuracy == pytest.approx(52.63157894736842)
    assert result.iou_per_class == pytest.approx([0, 0, 37.5, 40, 50, 0, 50, 100, 100, 100])
    assert result.accuracy_per_class == pytest.approx([0, 0, 75, 66.6666667, 100, 0, 50, 100, 100, 100])
    assert result.num_images == 3


def test_every_score_equals_a_loop_over_pixels():
    num_classes, present = 7, [0, 1, 2, 4, 6]
    pairs = _random_pairs(1, num_classes, present)
    result = _counted(pairs, num_classes).result("abcdefg")
    inter, pred, lab = _by_pixel_loop(pairs, num_classes)
    assert result.labelled_pixels == tuple(lab)
    assert result.predicted_pixels == tuple(pred)
    iou = [100 * i / (p + g - i) for i, p, g in zip(inter, pred, lab, strict=True) if p + g]
    dice = [200 * i / (p + g) for i, p, g in zip(inter, pred, lab, strict=True) if p + g]
    precision = [100 * i / p for i, p in zip(inter, pred, strict=True) if p]
    recall = [100 * i / g for i, g in zip(inter, lab, strict=True) if g]
    assert result.miou == pytest.approx(sum(iou) / len(iou))
    assert result.mean_dice == pytest.approx(sum(dice) / len(dice))
    assert result.mean_fscore == pytest.approx(result.mean_dice)  # every present class has hits here
    assert result.mean_precision == pytest.approx(sum(precision) / len(precision))
    assert result.mean_recall == result.mean_accuracy == pytest.approx(sum(recall) / len(recall))
    assert result.pixel_accuracy == pytest.approx(100 * sum(inter) / sum(lab))
    assert result.absent_classes == ("d", "f")


def test_scores_equal_torchmetrics_where_every_class_is_present():
    # here, because a GPU's machine may lack it and has a test of this file to run
    from torchmetrics.classification import MulticlassJaccardIndex, MulticlassPrecision, MulticlassRecall

    num_classes = 5
    pairs = _random_pairs(2, num_classes, range(num_classes))
    result = _counted(pairs, num_classes).result("abcde")
    theirs = {
        "iou": MulticlassJaccardIndex(num_classes, average="none", ignore_index=255),
        "precision": MulticlassPrecision(num_classes, average="none", ignore_index=255),
        "recall": MulticlassRecall(num_classes, average="none", ignore_index=255),
    }
    for metric in theirs.values():
        for prediction, label in pairs:
            metric.update(torch.as_tensor(prediction)[None], torch.as_tensor(label)[None])
    assert result.iou_per_class == pytest.approx((100 * theirs["iou"].compute()).tolist(), rel=1e-5)
    assert result.precision_per_class == pytest.approx(
        (100 * theirs["precision"].compute()).tolist(), rel=1e-5
    )
    assert result.recall_per_class == pytest.approx((100 * theirs["recall"].compute()).tolist(), rel=1e-5)
    assert result.miou == pytest.approx(100 * float(theirs["iou"].compute().mean()), rel=1e-5)


def test_absent_only_predicted_and_never_hit_classes():
    # class 0: right everywhere; 1: only predicted; 2: only labelled; 3: in neither
    result = score(np.array([[6, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]), "abcd", 1)
    assert result.iou_per_class[:3] == (100, 0, 0)
    assert math.isnan(result.iou_per_class[3])
    assert result.miou == pytest.approx(100 / 3)
    assert math.isnan(result.accuracy_per_class[1])
    assert result.mean_accuracy == pytest.approx(50)
    assert math.isnan(result.precision_per_class[2])
    assert result.mean_precision == pytest.approx(50)
    assert result.mean_dice == pytest.approx(100 / 3)
    assert result.mean_fscore == 100  # F is undefined where nothing was hit, so only class 0 has one
    assert result.absent_classes == ("d",)


def test_nothing_labelled_gives_nan_and_no_warning():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.zeros(4, 4, dtype=torch.int64), torch.full((4, 4), 255))
    result = matrix.result("abc")
    assert all(math.isnan(result.metric(name)) for name in METRICS)
    assert result.absent_classes == ("a", "b", "c")
    assert result.num_images == 1


def test_counts_of_ranks_add_up():
    pairs = _random_pairs(3, 4, range(4), count=5)
    whole = _counted(pairs, 4).result("abcd")
    first, second = _counted(pairs[:2], 4), _counted(pairs[2:], 4)
    first.counts += second.counts
    assert first.result("abcd") == whole
    assert np.array_equal(first.result("abcd").confusion, whole.confusion)


def test_update_returns_the_counts_of_that_image_alone():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))
    one = matrix.update(torch.tensor([[1, 1]]), torch.tensor([[1, 255]]))
    assert one.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        ([[0, 1]], [[0], [1]], "differ in shape"),
        ([[0, 1]], [[0, 3]], "label ids go from 0 to 3, expected 0 to 2 or 255"),
        ([[0, 3]], [[0, 1]], "prediction ids go from 0 to 3, expected 0 to 2"),
        ([[0, -1]], [[0, 1]], "prediction ids go from -1 to 0"),
        ([[0, 1]], [[0, -1]], "label ids go from -1 to 0, expected 0 to 2 or 255"),
    ],
)
def test_maps_that_cannot_be_counted(prediction, label, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(3).update(torch.tensor(prediction), torch.tensor(label))


def test_one_class_is_enough_and_an_image_without_a_pixel_counts_as_one():
    matrix = ConfusionMatrix(1)
    matrix.update(torch.tensor([[0, 7, 0]]), torch.tensor([[0, 255, 255]]))
    assert matrix.update(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3)).tolist() == [[0]]
    result = matrix.result("a")
    assert (result.miou, result.labelled_pixels, result.num_images) == (100, (1,), 2)


def test_a_class_that_is_hardly_ever_hit_has_an_f_score():
    result = score(np.array([[1, 999], [999, 0]]), "ab", 1)
    assert result.fscore_per_class[0] == pytest.approx(0.1)
    assert math.isnan(result.fscore_per_class[1])


def test_an_ignored_label_may_hide_any_prediction_and_be_any_number():
    matrix = ConfusionMatrix(300, ignored=65535)
    matrix.update(torch.tensor([[255, 65535]]), torch.tensor([[255, 65535]]))
    result = matrix.result([str(i) for i in range(300)])
    assert result.iou_per_class[255] == 100
    assert sum(result.labelled_pixels) == 1


def test_names_must_fit_and_metric_names_are_known():
    with pytest.raises(ValueError, match="2 class names do not fit"):
        ConfusionMatrix(3).result("ab")
    with pytest.raises(ValueError, match="no metric 'miou'; choose one of mIoU"):
        score(np.eye(2, dtype=np.int64), "ab", 1).metric("miou")
    with pytest.raises(ValueError, match="at least one class"):
        ConfusionMatrix(0)


@pytest.mark.gpu
def test_counts_stay_on_the_device():
    matrix = ConfusionMatrix(3, "cuda")
    matrix.update(torch.tensor([[0, 1]], device="cuda"), torch.tensor([[0, 255]], device="cuda"))
    assert matrix.counts.is_cuda
    assert matrix.result("abc").labelled_pixels == (1, 0, 0)
