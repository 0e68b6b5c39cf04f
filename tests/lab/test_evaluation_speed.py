"""The two evaluators on the same detections."""

import re

from fca_mmdet.lab.evaluation_speed import detection_set, measure_evaluation


def test_evaluators_on_the_same_detections(capsys, monkeypatch):
    monkeypatch.setenv('RAYON_NUM_THREADS', '1')  # set to --threads for the rest of the process
    found = measure_evaluation(images=20, repeats=1, threads=1)
    said = capsys.readouterr().out
    assert '20 images, 144 objects, 80 classes, 100 detections an image, 1 threads' in said
    for kind, measured in zip(('segm', 'bbox'), found, strict=True):
        assert re.search(rf'{kind}  FastCocoMetric +\d+\.\d\d s \d\.\d+ ', said)
        assert measured['metric'] == kind
        assert measured['equal']
        assert 0.05 < measured['figures']['CocoMetric'][f'coco/{kind}_mAP'] < 0.95
        assert measured['rows']['CocoMetric']['ratio'] == 1


def test_masks_fill_their_boxes():
    truth, samples = detection_set(3)
    assert truth == detection_set(3)[0]
    assert [image['id'] for image in truth['images']] == [0, 1, 2]
    for sample in samples:
        found = sample['pred_instances']
        assert len(found['bboxes']) == len(found['masks']) == len(found['scores']) == len(found['labels']) == 100
        assert all(mask['size'] == [480, 640] for mask in found['masks'])
    for annotation in truth['annotations']:
        x, y, width, height = annotation['bbox']
        (octagon,) = annotation['segmentation']
        assert min(octagon[::2]) == x
        assert max(octagon[1::2]) <= y + height + 1e-9
        assert 0 <= x <= x + width <= 640
