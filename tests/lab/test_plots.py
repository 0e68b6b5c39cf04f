"""What is in the plots: asked of their axes, and of the picture."""

import resource

import numpy as np
import pytest
from helpers import read_picture
from numpy.testing import assert_allclose

from fca_mmdet import Frequency
from fca_mmdet.lab.plots import (
    collect_curves,
    draw_ap_against_cost,
    draw_ap_against_frequencies,
    draw_curves,
    draw_heat_map,
    draw_learning,
    draw_seeds,
    name_baseline,
    place_labels,
    plt,
    run_colors,
    spread,
    write_figure,
)

BLUE, ORANGE, GREEN = ((31, 119, 180), (255, 127, 14), (44, 160, 44))


def points(axis: plt.Axes) -> list[tuple[float, float]]:
    """The markers that stand alone."""
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if line.get_marker() == 'o' and len(line.get_xdata()) == 1]


def legend(axis: plt.Axes) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_seeds(drawn, tmp_path):
    aps = {'plain': {0: 30.0, 1: 32.0}, 'se': {0: 31.0, 1: 35.0, 2: 36.0}, 'gc': {2: 20.0}}
    baselines = dict.fromkeys(aps, 'plain')
    draw_seeds(aps, baselines, {'se': (-1.0, 5.0)}, '100 x box AP', tmp_path / 'seeds.png')
    left, right = drawn[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ['plain', 'se', 'gc']
    # A row for each run, in which each seed has its place.
    assert_allclose(points(left), [(30, -0.22), (32, 0), (31, 0.78), (35, 1), (36, 1.22), (20, 2.22)], atol=1e-9)
    assert_allclose(points(right), [(1, 0.78), (3, 1)])  # gc has no seed in common with plain
    bars = [[path.vertices.tolist() for path in bar.get_paths()] for bar in left.collections]
    assert_allclose(bars[1], [[[34, 0.64], [34, 1.36]]])
    band = right.collections[-1].get_paths()[0].vertices
    assert [*band.min(0), *band.max(0)] == pytest.approx([-1, 0.64, 5, 1.36])
    assert left.get_xlabel() == '100 x box AP; bar: mean over seeds'
    assert right.get_xlabel() == 'minus that of plain with the same seed; band: 95 % interval'
    assert legend(right) == ['seed 0', 'seed 1', 'seed 2']
    picture = read_picture(tmp_path / 'seeds.png')
    assert picture.shape == (round((1.6 + 3 * 0.42) * 120), 12 * 120, 3)
    assert color_at(drawn[0], picture, left, 35, 1) == ORANGE


def color_at(figure: plt.Figure, picture: np.ndarray, axis: plt.Axes, x: float, y: float) -> tuple[int, ...]:
    """The colour of the pixel at a place of the axes."""
    right, up = axis.transData.transform((x, y)) * 120 / 100  # dots of the file, and of the figure, an inch
    return tuple(picture[round(len(picture) - up), round(right)].tolist())


def test_cost(drawn, tmp_path):
    aps = {'plain': [30.0, 32.0], 'se': [33.0], 'gc': [36.0, 38.0]}
    costs = {'time': {'plain': [1.0, 1.0], 'se': [1.1], 'gc': [1.2, 1.6]}, 'parameters, M': {'plain': [4.0], 'se': [5.0], 'gc': []}}
    draw_ap_against_cost(aps, costs, 'AP', tmp_path / 'cost.png')
    left, right = drawn[0].axes
    assert_allclose(points(left), [(1, 31), (1.1, 33), (1.4, 37)])
    assert points(right) == [(4, 31), (5, 33)]
    assert [left.get_xlabel(), left.get_ylabel(), right.get_xlabel()] == ['time', 'AP', 'parameters, M']
    assert [[text.get_text() for text in axis.texts if text.get_text()] for axis in (left, right)] == [
        ['plain', 'se', 'gc'],
        ['plain', 'se'],
    ]
    (upward,) = left.containers[2].lines[2][1].get_segments()
    assert upward[:, 1] == pytest.approx([37 - 2**0.5, 37 + 2**0.5])
    picture = read_picture(tmp_path / 'cost.png')
    assert [color_at(drawn[0], picture, left, *point) for point in points(left)] == [BLUE, ORANGE, GREEN]


def test_frequencies(drawn, tmp_path):
    families = {'low': {1: [30.0, 32.0], 16: [40.0]}, 'top': {2: [33.0]}}
    draw_ap_against_frequencies(families, ('plain', [28.0, 30.0]), 'AP', tmp_path / 'frequencies.png')
    (axis,) = drawn[0].axes
    low, top = (container.lines[0] for container in axis.containers)
    assert list(low.get_ydata()) == [31, 40]
    assert list(low.get_xdata()) == pytest.approx([1, 16], rel=0.02)  # moved a little aside
    assert list(top.get_ydata()) == [33]
    assert [label.get_text() for label in axis.get_xticklabels()] == ['1', '2', '16']
    assert [axis.get_xlabel(), axis.get_ylabel()] == ['number of frequencies', 'AP']
    assert sorted(legend(axis)) == ['low', 'plain', 'top']
    (across,) = (line for line in axis.lines if line.get_label() == 'plain')
    assert list(across.get_ydata()) == [29, 29]
    draw_ap_against_frequencies(families, ('plain', []), 'AP', tmp_path / 'frequencies.png')
    assert legend(drawn[1].axes[0]) == ['low', 'top']


def test_heat_map(drawn, tmp_path):
    aps = {Frequency(u, v): 10.0 * u + v for u in range(7) for v in range(7) if (u, v) != (6, 6)}
    draw_heat_map(aps, [Frequency(6, 5), Frequency(0, 3)], 'AP', tmp_path / 'singles.png')
    axis, bar = drawn[0].axes
    values = axis.images[0].get_array()
    assert values[2, 5] == 25  # u is the row
    assert values.mask[6, 6]
    assert {text.get_text(): text.get_position() for text in axis.texts}['25.0'] == (5, 2)
    frames = [(frame.get_x() + frame.get_width() / 2, frame.get_y() + frame.get_height() / 2) for frame in axis.patches]
    assert_allclose(frames, [(5, 6), (3, 0)], atol=1e-9)
    assert [text.get_text() for text in axis.texts[-2:]] == ['1', '2']
    assert [axis.get_xlabel(), axis.get_ylabel(), bar.get_ylabel()] == ['v, along the width', 'u, along the height', 'AP']
    assert axis.get_title() == 'each frequency alone; framed: chosen, in this order'
    picture = read_picture(tmp_path / 'singles.png')
    assert color_at(drawn[0], picture, axis, 6, 6) == (211, 211, 211)  # no AP there
    assert color_at(drawn[0], picture, axis, 0.3, 0.3) == (68, 1, 84)  # the lowest of viridis
    assert color_at(drawn[0], picture, axis, 5.3, 6.3) == (253, 231, 36)  # and the highest
    assert color_at(drawn[0], picture, axis, 5.46, 6) == (255, 0, 0)


def test_learning(drawn, tmp_path):
    logs = {
        name: [
            [*(dict(step=step, loss=loss - seed - 0.1 * step) for step in (2, 4)), {'step': 4, 'coco/bbox_mAP': 0.1 * loss}]
            for seed in (0, 1)
        ]
        for name, loss in {'plain': 4.0, 'se': 3.0}.items()
    }
    draw_learning(logs, 'bbox_mAP', 'AP', tmp_path / 'learning.png')
    (axis,) = drawn[0].axes  # AP is taken once, so it has no curve
    assert axis.get_ylabel() == 'training loss'
    assert axis.get_yscale() == 'log'
    assert_allclose([line.get_ydata() for line in axis.lines], [[3.3, 3.1], [2.3, 2.1]])
    assert [list(line.get_xdata()) for line in axis.lines] == [[2, 4], [2, 4]]
    assert legend(axis) == ['plain', 'se']
    band = axis.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((3.1 - 0.5**0.5, 3.3 + 0.5**0.5))
    for seeds in logs.values():
        for entries in seeds:
            entries.append({'step': 8, 'coco/bbox_mAP': 0.5})
    draw_learning(logs, 'bbox_mAP', 'AP', tmp_path / 'learning.png')
    assert [axis.get_ylabel() for axis in drawn[1].axes] == ['training loss', 'AP']
    assert_allclose([line.get_ydata() for line in drawn[1].axes[1].lines], [[40, 50], [30, 50]])


def test_curves_of_one_training(drawn, tmp_path):
    entries = [dict(step=step, loss=3.0 - step, loss_cls=1.0, time=9.0) for step in (1, 2)]
    entries += [{'step': 2, 'coco/bbox_mAP': 0.2, 'coco/bbox_mAP_50': 0.4, 'coco/segm_mAP': 0.1}]
    draw_curves(entries, tmp_path / 'curves.png')
    left, right = drawn[0].axes
    assert {line.get_label(): list(line.get_ydata()) for line in left.lines} == {'loss': [2, 1], 'loss_cls': [1, 1]}
    assert {line.get_label(): line.get_xydata().tolist() for line in right.lines} == {
        'box AP': [[2, 0.2]],
        'box AP50': [[2, 0.4]],
        'mask AP': [[2, 0.1]],
    }
    assert left.get_yscale() == 'log'
    assert right.get_ylim() == (0, 1)
    picture = read_picture(tmp_path / 'curves.png')
    assert picture.shape == (480, 1320, 3)
    assert color_at(drawn[0], picture, left, 1.5, 2**0.5) == BLUE
    assert color_at(drawn[0], picture, right, 2, 0.2) == BLUE
    assert color_at(drawn[0], picture, right, 2, 0.4) == ORANGE


def test_curves_over_seeds():
    logs = {
        'plain': [[dict(step=2, loss=1.0), {'step': 2, 'coco/bbox_mAP': 0.3}], [dict(step=2, loss=3.0), {'step': 4, 'coco/bbox_mAP': -1}]]
    }
    assert collect_curves(logs, 'loss') == {'plain': {2: [1.0, 3.0]}}
    assert collect_curves(logs, 'coco/bbox_mAP', 100) == {'plain': {2: [30.0]}}
    assert collect_curves(logs, 'acc') == {}


def test_spread_is_that_of_a_sample():
    assert spread([1.0, 2.0, 3.0]) == 1
    assert spread([1.0]) == 0


def test_colors_are_different_up_to_ten():
    colors = run_colors('abcdefghijk')
    assert len(set(colors.values())) == 10
    assert tuple(round(255 * value) for value in colors['a']) == BLUE
    assert colors['k'] == colors['a']


def test_the_baseline_in_words():
    assert name_baseline({'plain': 'plain', 'se': 'plain'}) == 'plain'
    assert name_baseline({'se': 'plain', 'se-3x': 'plain-3x'}) == "the run's baseline"


def test_names_do_not_overlap():
    named = {f'a name of run {index}': (1 + 0.001 * (index % 4), 30 + 0.001 * (index // 4)) for index in range(16)} | {'far': (2.0, 40.0)}
    figure, axis = plt.subplots()
    axis.plot(*zip(*named.values(), strict=True), 'o')
    place_labels(figure, axis, named, run_colors(named))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
    assert len(boxes) == len(named)
    assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[:index])
    assert all(axis.get_window_extent().count_contains(box.corners()) == 4 for box in boxes)
    plt.close(figure)


def test_no_part_of_a_picture_is_left(tmp_path):
    """As files of more than 1,000 bytes cannot be written."""
    out = tmp_path / 'figure.png'
    out.write_bytes(b'old')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    figure = plt.figure()
    figure.text(0.5, 0.5, 'text')
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match='File too large'):
            write_figure(figure, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {'figure.png': b'old'}
    write_figure(figure, out)
    picture = read_picture(out)
    assert picture.shape == (576, 768, 3)
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[280:300, 380:430].min() < 50  # the text
