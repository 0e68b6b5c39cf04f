"""The log of a training that was interrupted."""

import pytest
from made_up_results import log
from mmengine.config import Config

from fca_mmdet.lab.log import log_early, read_scalars, read_steps


def test_of_a_step_that_was_logged_twice_the_later_entry_stands(tmp_path):
    first = [dict(step=1, loss=5.0), dict(step=2, loss=4.0), {'step': 2, 'coco/bbox_mAP': 0.1}, dict(step=3, loss=3.0)]
    log(tmp_path, first, '20250101_000000')
    log(tmp_path, [dict(step=2, loss=4.5), {'step': 4, 'coco/bbox_mAP': 0.2}], '20250102_000000')
    log(tmp_path / 'test', [{'step': 9, 'coco/bbox_mAP': 0.9}])  # of another work directory, below this one
    steps = [dict(step=1, loss=5.0), dict(step=2, loss=4.5), dict(step=3, loss=3.0)]
    assert read_steps(tmp_path) == steps
    assert read_scalars(tmp_path) == [steps[0], {'step': 2, 'coco/bbox_mAP': 0.1}, *steps[1:], {'step': 4, 'coco/bbox_mAP': 0.2}]


def test_a_line_that_is_written_just_now_is_left_out(tmp_path):
    log(tmp_path, [dict(step=1, loss=5.0)])
    (path,) = tmp_path.rglob('scalars.json')
    with path.open('a') as file:
        file.write('{"step": 2, "lo')
    assert read_scalars(tmp_path) == [dict(step=1, loss=5.0)]
    assert read_scalars(tmp_path / 'none') == []


@pytest.mark.parametrize(
    ('logger', 'schedule', 'interval'),
    [
        (dict(interval=50), dict(max_iters=4), 4),
        (dict(interval=50), dict(max_iters=800), 50),
        (dict(), dict(max_iters=4), 4),
        (dict(interval=50), dict(max_epochs=1), 50),  # mmengine logs the end of a short epoch
    ],
)
def test_a_training_of_few_iterations_logs_its_steps(logger, schedule, interval):
    cfg = Config(dict(default_hooks=dict(logger=logger), train_cfg=schedule))
    log_early(cfg)
    assert cfg.default_hooks.logger.interval == interval
