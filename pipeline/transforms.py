"""What happens to the pixels of an image between the file and the network: decoding, augmentation, normalisation.

All randomness comes in from outside, as a row of uniform numbers for each image, so that it can follow from the seed
alone.
"""
import math

import numpy as np
from PIL import Image, ImageOps

from pipeline.pixels import levels, to_rgb
from pipeline.trivial_augment import TrivialAugment
from runtime.files import open_regular

# Mean and standard deviation of the pixels, R, G, B, as fractions of 255.
CIFAR_PIXELS = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)
CIFAR100_PIXELS = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
DIGITS_PIXELS = (0.3053,) * 3, (0.3760,) * 3
IMAGENET_PIXELS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The formats that are read, by PIL's names; JPEG includes MPO. Others may start programs (PostScript) or are no photos.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'PPM', 'TIFF', 'WEBP')
DRAFTED = ('JPEG', 'MPO')  # those that can be decoded at a smaller size
MAX_PIXELS = 1 << 26  # of a decoded image: 256 MB in PIL's four bytes a pixel
MAX_BYTES = 1 << 28  # of an image file
ORIENTATION = 0x0112  # of EXIF

POLICIES = {'none': None, 'trivial': TrivialAugment()}  # by the values of --augment


class Augmentation:
    """Pad with zeros and crop back, flip, normalise, cut out: the CIFAR recipe of DARTS (appendix A.1), on a whole
    batch.

    padding: pixels on each side; all (2 * padding + 1)^2 offsets are equally likely. flip: mirror half of the images.
    cutout_length: side of the square that is blanked, its centre anywhere in the image (DeVries and Taylor 2017); 0
    for none. policy: further operations on the flipped images, such as a TrivialAugment, or None.
    """

    own_draws = 5  # random numbers an image needs: crop y and x, flip, cutout y and x; then those of the policy

    def __init__(self, mean, std, padding=0, flip=False, cutout_length=0, policy=None):
        self.mean, self.std = mean, std
        self.policy, self.draws = policy, self.own_draws + (policy.draws if policy else 0)
        self.padding, self.flip, self.cutout_length = padding, flip, cutout_length
        self.scale = (1 / (255 * np.asarray(std, 'float32'))).reshape(1, 3, 1, 1).astype('float32')
        self.shift = (np.asarray(mean) / np.asarray(std)).reshape(1, 3, 1, 1).astype('float32')

    def __str__(self):
        return 'padded by {} and cropped, {}flipped, {}{}'.format(
            self.padding, '' if self.flip else 'not ', f'cutout of {self.cutout_length}x{self.cutout_length}'
            if self.cutout_length else 'no cutout', f', {self.policy}' if self.policy else '')

    def plain(self):
        """The same normalisation without anything random, for evaluation."""
        return Augmentation(self.mean, self.std)

    def __call__(self, images, uniform):
        """images uint8 [N, 3, H, W], uniform [N, draws] in [0, 1) -> float32 [N, 3, H, W]."""
        batch = np.empty(images.shape, 'float32')
        for start in range(0, len(images), 64):  # so many at a time stay in the processor's cache: twice as fast at 256
            part = slice(start, start + 64)
            self._write(images[part], uniform[part], batch[part])
        return batch

    def _write(self, images, uniform, batch):
        n, _, h, w = images.shape
        if self.padding:
            p = self.padding
            padded = np.zeros((n, 3, h + 2 * p, w + 2 * p), 'uint8')
            padded[:, :, p:-p, p:-p] = images
            windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(2, 3))
            y, x = (uniform[:, :2] * (2 * p + 1)).astype(int).T
            images = windows[np.arange(n), :, y, x]
        if self.flip:
            mirrored = uniform[:, 2] < 0.5
            if not self.padding:
                images = images.copy()  # the crop above has made one
            images[mirrored] = images[mirrored][:, :, :, ::-1]
        if self.policy:
            images = np.stack([self.policy(image, row) for image, row in zip(images, uniform[:, self.own_draws:])])
        np.multiply(images, self.scale, out=batch)
        batch -= self.shift
        if self.cutout_length:
            half = self.cutout_length // 2
            y, x = (uniform[:, 3:5] * (h, w)).astype(int).T
            rows = np.abs(np.arange(h) + 0.5 - y[:, None]) > half  # those outside y - half <= row < y + half
            columns = np.abs(np.arange(w) + 0.5 - x[:, None]) > half
            batch *= (rows[:, :, None] | columns[:, None, :])[:, None].astype('float32')


class RandomResizedCrop:
    """A random part of a photo, 8 % to 100 % of its area, 3:4 to 4:3, brought to size x size, and a flip: the ImageNet
    recipe (Szegedy et al. 2015, as torchvision has it)."""

    attempts = 10
    draws = 4 * attempts + 1  # for each attempt area, aspect ratio, y and x; then the flip

    def __init__(self, size):
        self.size = size

    def __str__(self):
        return f'randomly cropped to {self.size}x{self.size} and flipped'

    def plain(self):
        return CentreCrop(self.size, share=224 / 256)

    def box(self, width, height, uniform):
        """The part to take, (left, top, right, bottom) in pixels: the first attempt that fits, else the centre."""
        for area, ratio, y, x in uniform[:-1].reshape(-1, 4):
            area = (0.08 + 0.92 * area) * width * height
            ratio = math.exp((2 * ratio - 1) * math.log(4 / 3))
            w, h = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, top, left + w, top + h
        w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
        return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2

    def flip(self, uniform):
        return uniform[-1] < 0.5


class CentreCrop:
    """The central square of a photo, `share` of its shorter side, brought to size x size. ImageNet's evaluation takes
    224/256."""

    draws = 0

    def __init__(self, size, share=1.0):
        self.size, self.share = size, share

    def plain(self):
        return self

    def box(self, width, height, uniform):
        side = min(width, height) * self.share
        return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2

    def flip(self, uniform):
        return False


def load_photo(path, crop, uniform):
    """Decode an image file -> uint8 [3, size, size], whatever its mode: grey-scale, palette, CMYK, alpha, rotated by
    EXIF, more than 8 bits.

    A JPEG is decoded no larger than the crop needs (in libjpeg's eighths). Raises ValueError or OSError for anything
    but an image file of a moderate size.
    """
    with open_regular(path, MAX_BYTES) as file, Image.open(file, formats=FORMATS) as image:
        if image.format not in DRAFTED:  # before getexif, which decodes a PNG
            _check_size(image)
        orientation = image.getexif().get(ORIENTATION, 1)
        turned = orientation >= 5  # those that swap width and height
        width, height = image.size[::-1] if turned else image.size
        box = np.asarray(crop.box(width, height, uniform), 'float64')
        needed = crop.size / min(box[2] - box[0], box[3] - box[1])
        image.draft('RGB', (math.ceil(image.width * needed), math.ceil(image.height * needed)))
        _check_size(image)
        black_and_white = levels(image)
        if orientation != 1:
            image = ImageOps.exif_transpose(image)
        box *= np.asarray((image.width / width, image.height / height) * 2)
        image = to_rgb(image, black_and_white)
        image = image.resize((crop.size, crop.size), Image.BILINEAR, box=tuple(box), reducing_gap=2)
    if crop.flip(uniform):
        image = ImageOps.mirror(image)
    return np.asarray(image).transpose(2, 0, 1)


def _check_size(image):
    """Raise ValueError for an image that would take too much memory."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f'it has {image.width} x {image.height} pixels, more than {MAX_PIXELS}')
