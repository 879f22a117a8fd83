"""TrivialAugment: every operation against numpy, and how operations and strengths are drawn."""
import numpy as np
import pytest
from PIL import Image

from pipeline.transforms import Augmentation
from pipeline.trivial_augment import OPERATIONS, SIGNED, TrivialAugment

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 10, 3), 'uint8')  # [H, W, 3]
IMAGE[:4] //= 2  # channels of other ranges, for autocontrast and equalize
PAPER = {'identity', 'autocontrast', 'equalize', 'rotate', 'solarize', 'color', 'posterize', 'contrast', 'brightness',
         'sharpness', 'shear_x', 'shear_y', 'translate_x', 'translate_y'}  # table 1


def grey(image):
    """Luma of ITU-R 601, as PIL rounds it."""
    r, g, b = np.moveaxis(image.astype('int64'), -1, 0)
    return (19595 * r + 38470 * g + 7471 * b + 32768) >> 16


def moved(image, source):
    """result[y, x] = image[source(y + 0.5, x + 0.5)], the nearest pixel; black outside."""
    result = np.zeros_like(image)
    h, w = image.shape[:2]
    for y in range(h):
        for x in range(w):
            from_y, from_x = [int(np.floor(value + 1e-9)) for value in source(y + 0.5, x + 0.5)]
            if 0 <= from_y < h and 0 <= from_x < w:
                result[y, x] = image[from_y, from_x]
    return result


def turned(image, degrees):
    """Counter-clockwise about the centre."""
    h, w = image.shape[:2]
    angle = np.deg2rad(degrees)
    return moved(image, lambda y, x: (
        h / 2 + (x - w / 2) * np.sin(angle) + (y - h / 2) * np.cos(angle),
        w / 2 + (x - w / 2) * np.cos(angle) - (y - h / 2) * np.sin(angle)))


def blended(start, image, factor):
    """start + factor * (image - start), cut off at 0 and 255 and towards zero."""
    return np.clip(start + factor * (image.astype('float64') - start), 0, 255).astype('uint8')


def smoothed(image):
    """The 3x3 mean with the centre counted five times; the border stays."""
    result = image.astype('float64').copy()
    for y in range(1, image.shape[0] - 1):
        for x in range(1, image.shape[1] - 1):
            result[y, x] = (image[y - 1:y + 2, x - 1:x + 2].sum((0, 1)) + 4.0 * image[y, x]) / 13
    return np.floor(result + 0.5)


def autocontrasted(image):
    low, high = image.min((0, 1)).astype('float64'), image.max((0, 1)).astype('float64')
    return np.clip((image - low) * (255 / (high - low)), 0, 255).astype('uint8')


def equalized(image):
    """Each channel's histogram, cumulated, as ImageOps documents it for an equal number of pixels a level."""
    result = image.copy()
    for c in range(3):
        counts = np.bincount(image[..., c].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        if step:
            table = (step // 2 + np.concatenate([[0], np.cumsum(counts)[:-1]])) // step
            result[..., c] = np.clip(table, 0, 255)[image[..., c]]
    return result


EXPECTED = {
    'identity': lambda image, s: image,
    'shear_x': lambda image, s: moved(image, lambda y, x: (y, x + 0.99 * s * y)),
    'shear_y': lambda image, s: moved(image, lambda y, x: (y + 0.99 * s * x, x)),
    'translate_x': lambda image, s: moved(image, lambda y, x: (y, x + int(10 * s))),
    'translate_y': lambda image, s: moved(image, lambda y, x: (y + int(12 * s), x)),
    'rotate': lambda image, s: turned(image, 135 * s),
    'brightness': lambda image, s: blended(0, image, 1 + 0.99 * s),
    'color': lambda image, s: blended(grey(image)[..., None], image, 1 + 0.99 * s),
    'contrast': lambda image, s: blended(int(grey(image).mean() + 0.5), image, 1 + 0.99 * s),
    'sharpness': lambda image, s: blended(smoothed(image), image, 1 + 0.99 * s),
    'posterize': lambda image, s: image >> round(6 * s) << round(6 * s),
    'solarize': lambda image, s: np.where(image < 256 - round(256 * s), image, 255 - image),
    'autocontrast': lambda image, s: autocontrasted(image),
    'equalize': lambda image, s: equalized(image),
}


@pytest.mark.parametrize('strength', [0, 1 / 30, 0.5, 23 / 30, 1, -1 / 30, -0.5, -1])
@pytest.mark.parametrize('name', sorted(EXPECTED))
def test_each_operation(name, strength):
    if strength < 0 and name not in SIGNED:
        return
    image = np.tile(IMAGE, (9, 9, 1))[:100, :80] if name == 'equalize' else IMAGE  # fewer than 256 pixels stay
    found = np.asarray(OPERATIONS[name](Image.fromarray(image), strength)).astype('int64')
    expected = EXPECTED[name](image, strength).astype('int64')
    assert found.shape == image.shape
    if name == 'rotate':  # PIL rounds the matrix: pixels at the border of two may be either
        assert (found != expected).any(-1).mean() < 0.05
    else:
        assert np.abs(found - expected).max() <= (1 if name in ('sharpness', 'color', 'contrast') else 0)
    if strength == 0 and name not in ('autocontrast', 'equalize'):
        assert (found == image).all()
    elif name != 'identity' and abs(strength) == 1:
        assert (found != image).any()


def test_operations_levels_and_signs_are_equally_likely():
    assert set(OPERATIONS) == PAPER and set(EXPECTED) == PAPER
    drawn = [TrivialAugment().choice(row) for row in np.random.default_rng(1).random((43400, 3))]
    counts = {name: sum(found == name for found, _ in drawn) for name in PAPER}
    assert max(abs(count - 3100) for count in counts.values()) < 4 * np.sqrt(3100)
    for name in PAPER:
        levels = np.asarray([strength for found, strength in drawn if found == name]) * 30
        assert np.allclose(levels, np.round(levels)) and levels.max() == 30
        assert levels.min() == (-30 if name in SIGNED else 0)
        counts = np.bincount(np.abs(np.round(levels)).astype(int), minlength=31)
        assert counts.min() > 50 and counts.max() < 150  # 100 on average
        if name in SIGNED:
            assert abs((levels < 0).sum() - (levels > 0).sum()) < 4 * np.sqrt(3100)


def test_it_comes_between_the_flip_and_the_normalisation():
    """The cutout stays on top; without it, one bit of the recipe does not change."""
    images = np.random.default_rng(2).integers(0, 256, (70, 3, 8, 8), 'uint8')
    uniform = np.random.default_rng(3).random((70, 8))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    policy = TrivialAugment()
    flipped = np.stack([image[:, :, ::-1] if row[2] < 0.5 else image for image, row in zip(images, uniform)])
    changed = np.stack([policy(image, row[5:]) for image, row in zip(flipped, uniform)])
    assert (changed != flipped).any((1, 2, 3)).mean() > 0.6
    plain = Augmentation(mean, std, flip=False, cutout_length=4)
    expected = plain(changed, uniform[:, :5])
    assert Augmentation(mean, std, flip=True, cutout_length=4, policy=policy)(images, uniform).tobytes() \
        == expected.tobytes()
