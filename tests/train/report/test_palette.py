import numpy as np
from PIL import Image

from maskshards.train.report.palette import class_colours, overlay, paint, with_legend


def test_colours_are_far_apart_and_stay_with_their_class():
    colours = class_colours(150).astype(np.float64)
    distances = np.sqrt(((colours[:, None] - colours[None]) ** 2).sum(axis=-1))
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 30
    assert distances[:12, :12].min() > 100
    assert np.linalg.norm(colours, axis=1).min() > 30  # none looks unlabelled
    assert np.array_equal(class_colours(12), class_colours(150)[:12])


def test_more_classes_than_colours_still_have_one_each():
    assert class_colours(3400).shape == (3400, 3)


def test_paint_gives_each_pixel_its_colour_and_black_to_the_rest():
    colours = class_colours(3)
    painted = paint(np.array([[0, 2], [255, -1]]), colours)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[colours[0].tolist(), colours[2].tolist()], [[0, 0, 0], [0, 0, 0]]]


def test_overlay_mixes_and_draws_borders():
    image = np.full((4, 6, 3), 100, np.uint8)
    label_map = np.zeros((4, 6), np.int64)
    label_map[:, 3:] = 1
    colours = np.array([[200, 0, 100], [0, 200, 100]], np.uint8)
    mixed = overlay(image, label_map, colours, opacity=0.5)
    assert mixed[0, 0].tolist() == [150, 50, 100]
    assert mixed[0, 5].tolist() == [50, 150, 100]
    assert mixed[0, 3].tolist() == [20, 60, 40]  # the border is darker
    assert np.array_equal(overlay(image, label_map, colours, opacity=0.0)[0, 0], image[0, 0])


def test_legend_lists_what_is_there_largest_first():
    label_map = np.zeros((50, 40), np.int64)
    label_map[:10] = 2
    colours = class_colours(3)
    picture = paint(label_map, colours)
    canvas = np.asarray(with_legend(picture, label_map, ["wall", "sea", "tür\n"], colours))
    assert np.array_equal(canvas[:50, :40], picture)
    swatches = [tuple(canvas[8 + 20 * line + 6, 40 + 8 + 6]) for line in range(2)]
    assert swatches == [tuple(colours[0]), tuple(colours[2])]
    assert canvas.shape[0] == 8 + 2 * 20 + 8  # two rows: the absent class has none
    assert (canvas[:, 40 + 8 + 12 + 8 :] < 128).any()  # some text is drawn


def test_legend_of_a_picture_without_any_class():
    nothing = np.full((30, 30), 255)
    canvas = with_legend(paint(nothing, class_colours(2)), nothing, ["a", "b"], class_colours(2))
    assert isinstance(canvas, Image.Image)
    assert canvas.height == 30
