"""What happens to the pixels of an image between the file and the network: decoding, augmentation, normalisation.

All randomness comes in from outside, as a row of uniform numbers for each image, so that it can follow from the seed alone.
"""
import math

import numpy as np
from PIL import Image, ImageOps

# Mean and standard deviation of the pixels, R, G, B, as fractions of 255.
CIFAR_MEAN, CIFAR_STD = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)
DIGITS_MEAN, DIGITS_STD = (0.3053,) * 3, (0.3760,) * 3

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Augmentation:
    """Pad with zeros and crop back, flip, normalise, cut out: the CIFAR recipe of DARTS (appendix A.1), on a whole batch.

    padding: pixels on each side; all (2 * padding + 1)^2 offsets are equally likely. flip: mirror half of the images.
    cutout_length: side of the square that is blanked, its centre anywhere in the image (DeVries and Taylor 2017); 0 for none.
    """

    draws = 5  # random numbers an image needs: crop y and x, flip, cutout y and x

    def __init__(self, mean, std, padding=0, flip=False, cutout_length=0):
        self.mean, self.std = mean, std
        self.padding, self.flip, self.cutout_length = padding, flip, cutout_length
        self.scale = (1 / (255 * np.asarray(std, 'float32'))).reshape(1, 3, 1, 1).astype('float32')
        self.shift = (np.asarray(mean) / np.asarray(std)).reshape(1, 3, 1, 1).astype('float32')

    def plain(self):
        """The same normalisation without anything random, for evaluation."""
        return Augmentation(self.mean, self.std)

    def __call__(self, images, uniform):
        """images uint8 [N, 3, H, W], uniform [N, 5] in [0, 1) -> float32 [N, 3, H, W]."""
        n, _, h, w = images.shape
        if self.padding:
            p = self.padding
            padded = np.pad(images, ((0, 0), (0, 0), (p, p), (p, p)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(2, 3))
            y, x = (uniform[:, :2] * (2 * p + 1)).astype(int).T
            images = windows[np.arange(n), :, y, x]
        if self.flip:
            images = np.where((uniform[:, 2] < 0.5).reshape(n, 1, 1, 1), images[:, :, :, ::-1], images)
        batch = images.astype('float32')
        batch *= self.scale
        batch -= self.shift
        if self.cutout_length:
            half = self.cutout_length // 2
            y, x = (uniform[:, 3:] * (h, w)).astype(int).T
            rows = np.abs(np.arange(h) + 0.5 - y[:, None]) < half  # y - half <= row < y + half
            columns = np.abs(np.arange(w) + 0.5 - x[:, None]) < half
            batch[np.broadcast_to((rows[:, :, None] & columns[:, None, :])[:, None], batch.shape)] = 0
        return batch


class RandomResizedCrop:
    """A random part of a photo, 8 % to 100 % of its area, 3:4 to 4:3, brought to size x size, and a flip: the ImageNet recipe
    (Szegedy et al. 2015, as torchvision has it)."""

    attempts = 10
    draws = 4 * attempts + 1  # for each attempt area, aspect ratio, y and x; then the flip

    def __init__(self, size=224):
        self.size = size

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
    """The centre of a photo, 224/256 of its shorter side, brought to size x size: ImageNet's evaluation."""

    draws = 1

    def __init__(self, size=224):
        self.size = size

    def box(self, width, height, uniform):
        side = min(width, height) * 224 / 256
        return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2

    def flip(self, uniform):
        return False


def load_photo(path, crop, uniform):
    """Decode an image file -> uint8 [3, size, size], whatever its mode: grey-scale, palette, CMYK, alpha, rotated by EXIF.

    A JPEG is decoded no larger than the crop needs (in libjpeg's eighths).
    """
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations that swap width and height
        width, height = image.size[::-1] if turned else image.size
        box = np.asarray(crop.box(width, height, uniform), 'float64')
        needed = crop.size / min(box[2] - box[0], box[3] - box[1])
        image.draft('RGB', (math.ceil(image.width * needed), math.ceil(image.height * needed)))
        image = ImageOps.exif_transpose(image)
        box *= np.asarray((image.width / width, image.height / height) * 2)
        if image.mode == 'P':
            image = image.convert('RGBA')  # a palette's transparency
        image = image.convert('RGB').resize((crop.size, crop.size), Image.BILINEAR, box=tuple(box), reducing_gap=2)
    if crop.flip(uniform):
        image = ImageOps.mirror(image)
    return np.asarray(image).transpose(2, 0, 1)
