"""Bytes and operations, counted by hand and by torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fca_mmdet.lab import benchmark, roofline
from fca_mmdet.lab.timing import Setting

SETTING = Setting(size=(64, 96), dtype='bfloat16', threads=1)


def test_an_operator_is_counted_by_hand():
    out, left, right = torch.zeros(1, 4, 6), torch.zeros(1, 4, 5), torch.zeros(1, 5, 6)
    with roofline.Operators() as operators:
        out.baddbmm_(left, right)
        out.flatten(1).unflatten(1, (4, 6)).relu_()
        torch.empty(1000)
    product = 4 * (2 * out.numel() + left.numel() + right.numel()), 2 * 4 * 5 * 6
    assert operators.noted == [product, (4 * 2 * out.numel(), 0)]
    assert operators.seconds(roofline.Machine(bandwidth=2.0, rate=1e9)) == (product[0] + 8 * out.numel()) / 2
    assert operators.seconds(roofline.Machine(bandwidth=1e9, rate=2.0)) == pytest.approx(product[1] / 2, rel=1e-6)


@pytest.mark.parametrize('mode', ['inference', 'training'])
def test_a_backbones_operations_are_those_that_torch_counts(mode):
    noted = roofline.note('ResNet', SETTING, mode)
    subject = benchmark.Subject('ResNet', SETTING)
    with FlopCounterMode(display=False) as counter:
        getattr(subject, mode)()
    assert sum(operations for _, operations in noted.noted) == counter.get_total_flops()


def test_the_fold_moves_fewer_bytes(capsys):
    found = roofline.predict(Setting(dtype='bfloat16'), benchmark.COMPARED)
    said = capsys.readouterr().out
    assert 'bfloat16, 1 x 3 x 800 x 1344, training: computed, not measured' in said
    for mode in ('inference', 'training'):
        rows = {row['name']: row for row in found if row['mode'] == mode}
        assert list(rows) == benchmark.COMPARED
        assert list(rows['ResNet']['ratios'].values()) == [1.0] * 4
        assert rows['+ FCA, folded']['bytes'] < rows['ResNet']['bytes'] < rows['+ SE']['bytes']
        assert rows['+ FCA, folded']['operations'] == pytest.approx(rows['ResNet']['operations'], rel=0.02)
