"""The pixels of an image as 8-bit red, green and blue, scaled by the type of the file and never by the image itself: a
dark image stays dark beside a bright one.
"""
import numpy as np
from PIL import Image

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF 6.0
WHITE_IS_ZERO, SIGNED = 0, 2  # values of two of them
ADVICE = '; save the image with 8 or 16 unsigned bits a value or with floats from 0 to 1'
FLOAT_TOLERANCE = 1e-3  # how far floats may leave 0 to 1, as those of a smoothed or sharpened image do


def levels(image):
    """The values of black and white in an opened image of more than 8 bits a pixel, (black, white); None for others.

    Floats reach from 0 to 1, integers from 0 to the largest number of their bits. Raises ValueError where the type
    does not say which values are black and white.
    """
    tags = getattr(image, 'tag_v2', {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if SIGNED in tags.get(SAMPLE_FORMAT, ()) or image.mode == 'I' and image.format not in ('PNG', 'PPM', 'TIFF'):
        raise ValueError('signed integers do not say which values are black and white' + ADVICE)
    if image.mode.startswith('I') and bits > 16:
        raise ValueError(f'integers of {bits} bits do not say which value is white{ADVICE}')
    if not image.mode.startswith(('I', 'F')):
        return None
    white = 1.0 if image.mode == 'F' else 2.0**bits - 1
    return (white, 0.0) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else (0.0, white)


def to_rgb(image, black_and_white=None):
    """A PIL image of any mode in mode RGB; transparency is dropped.

    black_and_white: what `levels` gave for the file, where the image was opened from one. Raises ValueError for pixels
    without a defined range.
    """
    if image.mode == 'RGB':
        return image
    black_and_white = black_and_white or levels(image)
    if black_and_white:
        return _scaled(image, *black_and_white).convert('RGB')
    if image.mode in ('P', 'PA'):
        image = image.convert('RGBA')  # a palette's transparency
    return image.convert('RGB')


def _scaled(image, black, white):
    """A grey-scale image of numbers from black to white, in mode L."""
    values = np.array(image, 'float32')
    if image.mode == 'F':
        low, high = float(values.min()), float(values.max())
        if not (-FLOAT_TOLERANCE <= low and high <= 1 + FLOAT_TOLERANCE):  # NaN too
            raise ValueError(f'its floats reach from {low:g} to {high:g}; floats must reach from 0, black, to 1, white')
    values -= black  # in place: the image may be large
    values *= 255 / (white - black)
    np.clip(np.rint(values, out=values), 0, 255, out=values)
    return Image.fromarray(values.astype('uint8'))
