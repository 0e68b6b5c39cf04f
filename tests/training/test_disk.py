"""The space that a training's checkpoints take."""

from coco_folder import configure
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from fca_mmdet.training.disk import checkpoint_bytes, checkpoints_to_keep


def test_the_checkpoints_to_come():
    cfg = configure()
    init_default_scope('mmdet')
    weights = sum(value.numel() * value.element_size() for value in MODELS.build(cfg.model).state_dict().values())
    assert checkpoint_bytes(cfg) == 3 * weights
    for train_cfg, hook, count in [
        (dict(max_iters=800), dict(by_epoch=False, interval=100, max_keep_ckpts=2), 2),
        (dict(max_iters=800), dict(by_epoch=False, interval=100), 8),
        (dict(max_epochs=12), dict(interval=1), 12),
        (dict(max_epochs=12), dict(interval=-1), 1),
    ]:
        assert checkpoints_to_keep(Config(dict(train_cfg=train_cfg, default_hooks=dict(checkpoint=hook)))) == count
