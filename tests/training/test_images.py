"""Image files that are missing, that the pipeline's loader does not decode, or reads otherwise than they are stored or annotated."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from coco_folder import TRAIN, VAL, count_learned, edit, images, look, paths, replace_images
from helpers import says
from mmcv.transforms import LoadImageFromFile
from PIL import Image

OF = f'3 of 3 images of the train data, {TRAIN},'
IGNORE = "color_type='color_ignore_orientation' of LoadImageFromFile reads them as stored"
LOADERS = [f'{split}_dataloader.dataset.pipeline.0' for split in ('train', 'val', 'test')]


def loading(**options: str) -> dict:
    return {f'{loader}.{key}': value for loader in LOADERS for key, value in options.items()}


def saved(suffix: str, convert: Callable[[Image.Image], Image.Image] = Image.Image.copy, **options: object) -> Callable[[Path], Path]:
    """A conversion of an image file to another format."""

    def save(path: Path) -> Path:
        convert(Image.open(path)).save(path.with_suffix(suffix), **options)
        return path.with_suffix(suffix)

    return save


def as_array(dtype: type, factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: Image.fromarray((np.asarray(image.convert('L')) * factor).astype(dtype))


def with_hole(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(np.pad(np.full((182, 192), 255, np.uint8), ((10, 0), (0, 0)))))
    return image


UNDECODED = {
    'float-tiffs': saved('.tif', as_array(np.float32, 1 / 255)),
    '32-bit-tiffs': saved('.tif', as_array(np.int32, 99)),
    'lzma-tiffs': saved('.tif', compression='lzma'),
    'tgas': saved('.tga'),
}
"""PIL reads these."""


@pytest.mark.parametrize('case', UNDECODED)
def test_what_the_loader_does_not_decode(case, folder, capsys):
    replace_images(UNDECODED[case])
    said = look(capsys)[-1]
    assert says(said, f'{OF} are ... files of mode ..., which LoadImageFromFile does not decode: write them as PNG or JPEG of 8 bits; ...')
    with pytest.raises(AssertionError, match='failed to load image'):
        count_learned()


@pytest.mark.parametrize('case', ['tgas', 'lzma-tiffs'])
def test_another_loader_decodes_them(case, folder, capsys):
    replace_images(UNDECODED[case])
    assert look(capsys, loading(imdecode_backend='pillow')) == []
    assert count_learned(loading(imdecode_backend='pillow')) == 19


SOUND = {
    'jpegs': saved('.jpg'),
    'webps': saved('.webp'),
    'gifs': saved('.gif'),
    'bitmaps': saved('.bmp'),
    'grays': saved('.png', lambda image: image.convert('L')),
    'palettes': saved('.png', lambda image: image.convert('P')),
    'black-and-white': saved('.png', lambda image: image.convert('1')),
    'cmyk': saved('.jpg', lambda image: image.convert('CMYK')),
    'opaque-alpha': saved('.png', lambda image: image.convert('RGBA')),
    'lzw-tiffs': saved('.tif', compression='tiff_lzw'),
    'chinese-names': lambda path: path.rename(path.with_name(f'图像 {path.name}')),
}


@pytest.mark.parametrize('decode', [False, True])
@pytest.mark.parametrize('case', SOUND)
def test_what_passes(case, decode, folder, capsys):
    replace_images(SOUND[case])
    assert look(capsys, decode=decode) == []


TOLD = {
    '16-bit': (
        saved('.png', as_array(np.uint16, 16.0)),
        'have more than 8 bits a channel, of which the upper 8 are read: the first, ..., as ... to 1...',
    ),
    'transparent': (
        saved('.png', with_hole),
        'have transparent parts, and are read as if they had not: the first is data/images/train_0000.png',
    ),
    'transparent-webp': (saved('.webp', with_hole), 'have transparent parts, and are read as if they had not: ...'),
    'pages': (
        saved('.tif', save_all=True, append_images=[Image.new('RGB', (192, 192))]),
        'hold several pictures, of which the first is read: the first is data/images/train_0000.tif',
    ),
}


@pytest.mark.parametrize('case', TOLD)
def test_what_is_read_otherwise_than_stored_is_told(case, folder, capsys):
    change, expected = TOLD[case]
    replace_images(change)
    said = look(capsys)
    assert says(said[0], f'train: {OF} {expected}'), said
    assert [line.split(':')[0] for line in said] == ['train', 'val', 'test']
    assert count_learned() == 19


@pytest.mark.parametrize(('color', 'channels'), [('unchanged', 4), ('grayscale', 1)])
def test_channels_that_the_model_does_not_take(color, channels, folder, capsys):
    replace_images(TOLD['transparent'][0])
    said = look(capsys, loading(color_type=color))[-1]
    assert says(said, f"{OF} are read with {channels} channels, and the model's data_preprocessor takes 3: set color_type='color' of ...")


def test_gray_images_for_a_model_of_one_channel(folder, capsys):
    assert (
        look(capsys, loading(color_type='grayscale') | {'model.data_preprocessor.mean': [120], 'model.data_preprocessor.std': [60]}) == []
    )


def turned(orientation: int, suffix: str) -> Callable[[Path], Path]:
    """An image of 192 x 120 that is stored as it was annotated, with EXIF's word to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(suffix, lambda image: image.crop((0, 0, 192, 120)), exif=exif)


def annotated(width: int, height: int) -> None:
    """Give the images a size, and leave out what reaches beyond it."""
    side = min(width, height)
    edit(images(lambda image: image.update(width=width, height=height)))
    edit(
        lambda content: content.update(
            annotations=[a for a in content['annotations'] if a['bbox'][1] + a['bbox'][3] < side > a['bbox'][0] + a['bbox'][2]]
        )
    )


BOX_ONLY = {
    **{f'{loader}_dataloader.dataset.pipeline.{at}.with_mask': False for loader, at in dict(train=1, val=2, test=2).items()},
    **{f'{split}_evaluator.metric': 'bbox' for split in ('val', 'test')},
}


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_exif_turned(suffix, folder, capsys):
    replace_images(turned(6, suffix))
    annotated(192, 120)
    said = [line for line in look(capsys, BOX_ONLY) if 'EXIF' in line]
    expected = 'are turned as EXIF says when they are read, and annotated as if not: boxes lie beside the objects'
    assert said[0] == f'train: 3 of 3 images {expected}; {IGNORE}: the first is data/images/train_0000{suffix}'
    assert len(said) == 3
    assert LoadImageFromFile()(dict(img_path=str(paths('train')[0])))['img_shape'] == (192, 120)
    assert not [line for line in look(capsys, BOX_ONLY | loading(color_type='color_ignore_orientation')) if 'EXIF' in line]


def test_exif_turned_and_annotated_so(folder, capsys):
    replace_images(turned(6, '.jpg'))
    annotated(120, 192)
    assert not [line for line in look(capsys, BOX_ONLY) if 'images' in line and 'annotations' not in line]
    said = [line for line in look(capsys, BOX_ONLY | loading(color_type='color_ignore_orientation')) if 'EXIF' in line]
    assert says(
        said[0], "train: 3 of 3 images are read without the turn that EXIF asks for, and annotated with it: color_type='color' of ..."
    )


@pytest.mark.parametrize('decode', [False, True])
def test_exif_upside_down(decode, folder, capsys):
    """The size does not tell how they were annotated."""
    replace_images(turned(3, '.jpg'))
    annotated(192, 120)
    said = [line for line in look(capsys, BOX_ONLY, decode) if 'EXIF' in line]
    assert says(
        said[0], f'train: 3 of 3 images are turned as EXIF says when they are read: see if their annotations are, too; {IGNORE}: ...'
    )
    assert not [line for line in look(capsys, BOX_ONLY | loading(color_type='color_ignore_orientation'), decode) if 'EXIF' in line]


MISNAMED = {
    'backslashes': (lambda name: f'images\\{name}', {'train_dataloader.dataset.data_prefix.img': ''}, 'with / for \\'),
    'backslashes-and-the-folder-twice': (lambda name: f'images\\{name}', {}, 'with / for \\'),
    'the-folder-twice': (lambda name: f'images/{name}', {}, ''),
    'extension-case': (lambda name: name.replace('.png', '.PNG'), {}, ''),
    'another-extension': (lambda name: name.replace('.png', '.jpg'), {}, ''),
    'of-another-machine': (lambda name: f'C:\\Users\\me\\{name}', {}, 'with / for \\'),
}


@pytest.mark.parametrize('case', MISNAMED)
def test_images_under_another_name(case, folder, capsys):
    rename, options, hint = MISNAMED[case]
    edit(images(lambda image: image.update(file_name=rename(image['file_name']))), TRAIN)
    said = look(capsys, options)[-1]
    expected = (
        f'{OF} are missing: the first is ..., and there is data/images/train_0000.png: correct file_name{", " + hint if hint else ""}'
    )
    assert says(said, expected), said


def test_images_that_are_learned_from_too(folder, capsys):
    """The same file, a link to it, and a copy of the same name in another folder; an image of the same name only is another."""
    first, second, third = paths('train')
    (folder / 'data/other').mkdir()
    os.link(first, 'data/images/link.png')
    os.symlink(folder / second, 'data/images/symbolic.png')
    shutil.copy(third, f'data/other/{third.name}')
    cv2.imwrite(f'data/other/{second.name}', 255 - cv2.imread(str(second)))
    names = [first.name, 'link.png', 'symbolic.png', f'../other/{third.name}', f'../other/{second.name}']
    for count, name in enumerate(names[:-1]):
        edit(images(lambda image, name=name: image.update(file_name=name), 2), VAL)
        said = f'1 of 2 images are in the training data, too, so their score says little: the first is data/images/{name}'
        assert look(capsys) == [f'val: {said}', f'test: {said}'], count
    edit(images(lambda image: image.update(file_name=names[-1]), 2), VAL)
    assert look(capsys) == []


def test_an_image_that_is_listed_twice(folder, capsys):
    first = paths('train')[0]
    edit(lambda content: content['images'][1].update(file_name=first.name), TRAIN)
    assert look(capsys) == ['train: 1 of 3 images are listed more than once: the first is data/images/train_0000.png']
