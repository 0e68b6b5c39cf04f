"""Score a detector that Detectron2 trained with mmdet's model, data pipeline and metric.

    python tests/reference/detectron2_in_mmdet.py RUN FOLDER

RUN is the output folder of tools/train_detectron2.py with mask_rcnn_fca_R_50_thin_FPN_small.yaml, FOLDER its ``--data``, with images of 192
pixels, which neither framework resizes.
"""

import re
import sys
from pathlib import Path

import torch

NAMES = {
    r'^backbone\.bottom_up\.(stem\.)?': 'backbone.',
    r'(?<=^backbone\.)res(\d)': lambda stage: f'layer{int(stage[1]) - 1}',
    r'conv\d\.activation': 'att',
    r'(?<=^backbone\.)conv1\.norm': 'bn1',
    r'(layer\d\.\d+\.)conv(\d)\.norm': r'\1bn\2',
    r'shortcut\.norm': 'downsample.1',
    r'shortcut': 'downsample.0',
    r'^backbone\.fpn_(lateral|output)(\d)': lambda conv: f'neck.{conv[1]}_convs.{int(conv[2]) - 2}.conv',
    r'^neck\.output': 'neck.fpn',
    r'^proposal_generator\.rpn_head\.conv': 'rpn_head.rpn_conv',
    r'^proposal_generator\.rpn_head\.objectness_logits': 'rpn_head.rpn_cls',
    r'^proposal_generator\.rpn_head\.anchor_deltas': 'rpn_head.rpn_reg',
    r'^roi_heads\.box_head\.fc(\d)': lambda layer: f'roi_head.bbox_head.shared_fcs.{int(layer[1]) - 1}',
    r'^roi_heads\.box_predictor\.cls_score': 'roi_head.bbox_head.fc_cls',
    r'^roi_heads\.box_predictor\.bbox_pred': 'roi_head.bbox_head.fc_reg',
    r'^roi_heads\.mask_head\.mask_fcn(\d)': lambda conv: f'roi_head.mask_head.convs.{int(conv[1]) - 1}.conv',
    r'^roi_heads\.mask_head\.deconv': 'roi_head.mask_head.upsample',
    r'^roi_heads\.mask_head\.predictor': 'roi_head.mask_head.conv_logits',
    r'conv\.norm': 'gn',
}
"""Detectron2's names and mmdet's, to be replaced in this order."""


def main():
    from mmengine.runner import Runner

    import fca_mmdet
    from fca_mmdet.configs import read_config
    from fca_mmdet.lab.data import adapt_config, read_folder

    run, folder = map(Path, sys.argv[1:])
    weights = {}
    for name, value in torch.load(run / 'model_final.pth', weights_only=True)['model'].items():
        for pattern, replacement in NAMES.items():
            name = re.sub(pattern, replacement, name)
        weights[name] = value
    config = read_config(fca_mmdet.config_path('small/mask-rcnn_fca-r50-thin_fpn_small-heads'))
    adapt_config(config, read_folder(folder))
    config.work_dir = str(run / 'mmdet')
    config.model.neck.norm_cfg = config.model.roi_head.mask_head.norm_cfg = dict(type='GN', num_groups=32)
    config.model.test_cfg.rpn.update(nms_pre=500, max_per_img=100)
    runner = Runner.from_cfg(config)
    runner.model.load_state_dict(weights)
    runner.test()


if __name__ == '__main__':
    main()
