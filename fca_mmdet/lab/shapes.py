"""Make the textured shapes that ``tools/make_shapes.py`` describes, as a COCO-format data set."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

SIZE = 192
TEXTURES = {'coarse': (14.0, 20.0), 'fine': (5.0, 7.0)}  # wavelengths of the stripes, pixels
CLASSES = {'coarse-disc': ('disc', ('coarse',)), 'fine-disc': ('disc', ('fine',)), 'cross': ('cross', ('coarse', 'fine'))}
"""Outline and textures of each class."""
LEAST_VISIBLE = 0.5  # share of a shape's visible area; a new shape that would leave less of it visible is skipped


def outline_mask(rng: np.random.Generator, outline: str, centre: np.ndarray, radius: float) -> np.ndarray:
    """Draw a filled outline at a random rotation, ``[SIZE, SIZE]`` bool."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    angles = rng.uniform(0, 2 * np.pi) + np.pi / 32 * np.arange(64)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if outline == 'cross':  # two bars, each a rectangle of the first direction and its normal
        ends = points[[0, 16, 32, 48]]
        sides = 0.35 * points[[16, 32, 48, 0]]
        inner = ends * 0.35 + sides
        points = np.concatenate([[end - side, end + side, corner] for end, side, corner in zip(ends, sides, inner, strict=True)])
    points = centre + radius * points
    cv2.fillPoly(canvas, [np.round(points).astype(np.int32)], 1)
    return canvas.astype(bool)


def stripes(rng: np.random.Generator, wavelength: float, mask: np.ndarray) -> np.ndarray:
    """Draw stripes in a random direction and colour where ``mask`` is set, ``[mask.sum(), 3]`` float in 0..255."""
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    rows, columns = np.nonzero(mask)
    wave = np.sin(2 * np.pi / wavelength * (columns * np.cos(angle) + rows * np.sin(angle)) + phase)
    return rng.uniform(75, 180, 3) + rng.uniform(45, 65) * wave[..., None]


def make_image(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one image, ``[SIZE, SIZE, 3]`` uint8, and list its instances as (category id, visible mask)."""
    names = list(CLASSES)
    shapes: list[tuple[int, np.ndarray]] = []
    centres: list[np.ndarray] = []
    for _ in range(rng.integers(4, 11)):
        radius = float(np.exp(rng.uniform(np.log(14), np.log(36))))
        # About every other shape is put beside an earlier one, so that they crowd and overlap.
        if centres and rng.random() < 0.5:
            centre = centres[rng.integers(len(centres))] + rng.normal(0, 1.3 * radius, 2)
        else:
            centre = rng.uniform(0.1 * SIZE, 0.9 * SIZE, 2)
        category = int(rng.integers(len(CLASSES)))
        mask = outline_mask(rng, CLASSES[names[category]][0], centre, radius)
        kept = [(other, area & ~mask) for other, area in shapes]
        hidden = any(new.sum() < LEAST_VISIBLE * old.sum() for (_, new), (_, old) in zip(kept, shapes, strict=True))
        if mask.sum() >= 150 and not hidden:
            shapes = [*kept, (category, mask)]
            centres.append(centre)
    blots = rng.uniform(80, 170, (5, 5, 3)).astype(np.float32)
    image = cv2.resize(blots, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).astype(float)
    for category, mask in shapes:
        textures = CLASSES[names[category]][1]
        image[mask] = stripes(rng, rng.uniform(*TEXTURES[textures[rng.integers(len(textures))]]), mask)
    image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    return image, [(category + 1, mask) for category, mask in shapes]


def make_shapes(out: Path, train: int = 600, val: int = 80, seed: int = 0) -> None:
    """Write ``out/images`` and ``out/annotations/{train,val}.json``. Does nothing if ``out`` exists, which it does only when complete."""
    if out.exists():
        return
    part = out.with_name(out.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    (part / 'images').mkdir(parents=True)
    (part / 'annotations').mkdir()
    for split, (name, count) in enumerate({'train': train, 'val': val}.items()):
        images: list[dict] = []
        annotations: list[dict] = []
        for index in range(count):
            image, instances = make_image(np.random.default_rng([seed, split, index]))
            file_name = f'{name}_{index:04}.png'
            (part / 'images' / file_name).write_bytes(cv2.imencode('.png', image)[1].tobytes())  # imwrite reports no full disk
            images.append(dict(id=index, file_name=file_name, width=SIZE, height=SIZE))
            for category, mask in instances:
                rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                numbers = dict(id=len(annotations) + 1, image_id=index, category_id=category, iscrowd=0)
                extent = dict(area=float(coco_mask.area(rle)), bbox=coco_mask.toBbox(rle).tolist())
                segmentation = dict(size=list(rle['size']), counts=rle['counts'].decode())
                annotations.append(numbers | extent | dict(segmentation=segmentation))
        categories = [dict(id=k, name=name, supercategory='shape') for k, name in enumerate(CLASSES, start=1)]
        info = dict(description=f'textured shapes, seed {seed}', version='1')
        content = dict(info=info, licenses=[], categories=categories, images=images, annotations=annotations)
        (part / 'annotations' / f'{name}.json').write_text(json.dumps(content))
    part.rename(out)
