"""TrivialAugment (Mueller and Hutter 2021, table 1, the wide space): one random operation of a random strength on every
training image. The operations are PIL's; the strength has 31 levels, of which level 0 leaves the image as it is where
an operation has a strength.
"""
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LEVELS = 31
SHEAR, ROTATE, ENHANCE = 0.99, 135, 0.99  # at the highest level: per pixel, in degrees, of the enhancements' factor
TRANSLATE = 32  # pixels, at most the image's size


def _affine(image, a, b, c, d, e, f):
    """The pixel (x, y) of the result is that of `image` at (a x + b y + c, d x + e y + f), black outside."""
    return image.transform(image.size, Image.AFFINE, (a, b, c, d, e, f), Image.NEAREST)


def _enhanced(kind):
    return lambda image, strength: kind(image).enhance(1 + ENHANCE * strength)


# Operations on an RGB image by name. strength: from -1 to 1 for those in SIGNED, from 0 to 1 for the others.
OPERATIONS = {
    'identity': lambda image, strength: image,
    'shear_x': lambda image, strength: _affine(image, 1, SHEAR * strength, 0, 0, 1, 0),
    'shear_y': lambda image, strength: _affine(image, 1, 0, 0, SHEAR * strength, 1, 0),
    'translate_x': lambda image, strength: _affine(image, 1, 0, int(min(TRANSLATE, image.width) * strength), 0, 1, 0),
    'translate_y': lambda image, strength: _affine(image, 1, 0, 0, 0, 1, int(min(TRANSLATE, image.height) * strength)),
    'rotate': lambda image, strength: image.rotate(ROTATE * strength),
    'brightness': _enhanced(ImageEnhance.Brightness),
    'color': _enhanced(ImageEnhance.Color),
    'contrast': _enhanced(ImageEnhance.Contrast),
    'sharpness': _enhanced(ImageEnhance.Sharpness),
    'posterize': lambda image, strength: ImageOps.posterize(image, 8 - round(6 * strength)),
    'solarize': lambda image, strength: ImageOps.solarize(image, 256 - round(256 * strength)),
    'autocontrast': lambda image, strength: ImageOps.autocontrast(image),
    'equalize': lambda image, strength: ImageOps.equalize(image),
}
SIGNED = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'brightness', 'color', 'contrast', 'sharpness')


class TrivialAugment:
    """One of OPERATIONS, its level and its sign, all equally likely, on one image."""

    draws = 3  # random numbers an image needs: operation, level, sign

    def __str__(self):
        return 'TrivialAugment'

    def choice(self, uniform):
        """uniform [3] in [0, 1) -> (name of the operation, strength)."""
        name = list(OPERATIONS)[int(uniform[0] * len(OPERATIONS))]
        strength = int(uniform[1] * LEVELS) / (LEVELS - 1)
        return name, -strength if name in SIGNED and uniform[2] < 0.5 else strength

    def __call__(self, image, uniform):
        """image uint8 [3, H, W], uniform [3] in [0, 1) -> uint8 [3, H, W]."""
        name, strength = self.choice(uniform)
        changed = OPERATIONS[name](Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), strength)
        return np.asarray(changed).transpose(2, 0, 1)
