"""The pixels of image files by type: the values are those that the type says, the same for dark and bright images."""
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

import reader
from pipeline import transforms
from pipeline.sources import ImageFiles

SIZE = 8
AS_IT_IS = transforms.CentreCrop(SIZE)


def load(path):
    """The first row of the pixels of an image file of SIZE x SIZE, [SIZE, 3]."""
    return transforms.load_photo(str(path), AS_IT_IS, np.zeros(0))[:, 0].T.tolist()


def rows(values):
    """SIZE equal rows that begin with `values`, the rest 0."""
    return np.tile(np.resize(list(values) + [0] * SIZE, SIZE), (SIZE, 1))


def grey(values):
    """What load is to give for the grey levels `values`."""
    return [[value] * 3 for value in values] + [[0] * 3] * (SIZE - len(values))


def packed(values, bits):
    """SIZE equal rows of numbers of some bits each, the highest bit first, each row from a new byte."""
    row = ''.join(f'{value:0{bits}b}' for value in list(values) + [0] * (SIZE - len(values)))
    row += '0' * (-len(row) % 8)
    return SIZE * bytes(int(row[i:i + 8], 2) for i in range(0, len(row), 8))


def write_tiff(path, content, bits, sample_format=1, photometric=1):
    """A grey-scale TIFF of SIZE x SIZE by hand (TIFF 6.0): PIL does not write most of them."""
    tags = [(256, 3, SIZE), (257, 3, SIZE), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
            (277, 3, 1), (278, 3, SIZE), (279, 4, len(content)), (339, 3, sample_format)]
    fields = b''.join(struct.pack('<HHII', tag, kind, 1, value) for tag, kind, value in tags)
    path.write_bytes(b'II*\0' + struct.pack('<I', 8 + len(content)) + content + struct.pack('<H', len(tags)) + fields
                     + bytes(4))


UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # TIFF's SampleFormat


@pytest.mark.parametrize('content, bits, kind, photometric, expected', [
    (rows([0, 257, 32896, 65535]).astype('<u2').tobytes(), 16, UNSIGNED, 1, grey([0, 1, 128, 255])),
    (rows([0, 257, 1028]).astype('<u2').tobytes(), 16, UNSIGNED, 1, grey([0, 1, 4])),  # a dark image stays dark
    (rows([65535, 65278, 0]).astype('<u2').tobytes(), 16, UNSIGNED, 0, [[0] * 3, [1] * 3] + [[255] * 3] * 6),
    (packed([0, 16, 2056, 4095], 12), 12, UNSIGNED, 1, grey([0, 1, 128, 255])),
    (packed([1, 1, 1, 0], 12), 12, UNSIGNED, 1, grey([0, 0, 0])),
    (rows([0, 0.2, 0.5, 1]).astype('<f4').tobytes(), 32, FLOAT, 1, grey([0, 51, 128, 255])),
    (rows([0, 0.004, 0.01]).astype('<f4').tobytes(), 32, FLOAT, 1, grey([0, 1, 3])),
    (rows([0, 5, 200, 255]).astype('u1').tobytes(), 8, UNSIGNED, 1, grey([0, 5, 200, 255])),
    (packed([0, 5, 15], 4), 4, UNSIGNED, 1, grey([0, 85, 255])),
])
def test_tiff(tmp_path, content, bits, kind, photometric, expected):
    write_tiff(tmp_path / 'a.tif', content, bits, kind, photometric)
    assert load(tmp_path / 'a.tif') == expected


@pytest.mark.parametrize('content, bits, kind, reason', [
    (rows([-300, 0, 300]).astype('<i2').tobytes(), 16, SIGNED, 'signed integers do not say'),
    (rows([-3, 0, 3]).astype('i1').tobytes(), 8, SIGNED, 'signed integers do not say'),
    (rows([0, 255]).astype('<i4').tobytes(), 32, SIGNED, 'signed integers do not say'),
    (rows([0, 255]).astype('<u4').tobytes(), 32, UNSIGNED, 'integers of 32 bits do not say'),
    (rows([0, 0.5, 255]).astype('<f4').tobytes(), 32, FLOAT, 'its floats reach from 0 to 255'),
    (rows([-1, 0.5, 1]).astype('<f4').tobytes(), 32, FLOAT, 'its floats reach from -1 to 1'),
    (rows([np.nan, 0.5]).astype('<f4').tobytes(), 32, FLOAT, 'its floats reach from nan to nan'),
])
def test_what_has_no_defined_range_is_refused_in_a_line(tmp_path, content, bits, kind, reason):
    path = tmp_path / 'a.tif'
    write_tiff(path, content, bits, kind)
    files = ImageFiles([str(path)], [0], ['list, line 1: '], AS_IT_IS,
                       transforms.Augmentation(*transforms.IMAGENET_PIXELS), 1)
    images, labels, errors = files.batch([0], np.zeros((1, files.draws)))
    assert len(images) == len(labels) == 0
    assert errors[0].startswith(f'list, line 1: {path} cannot be read as an image: {reason}')
    assert '\n' not in errors[0]


@pytest.mark.parametrize('maximum, values, levels', [
    (255, [0, 5, 255], [0, 5, 255]), (100, [0, 20, 100], [0, 51, 255]), (1023, [0, 4, 1023], [0, 1, 255]),
    (4095, [0, 16, 4095], [0, 1, 255]), (65535, [0, 257, 514], [0, 1, 2])])
def test_pgm(tmp_path, maximum, values, levels):
    content = rows(values).astype('>u2' if maximum > 255 else 'u1').tobytes()
    (tmp_path / 'a.pgm').write_bytes(b'P5\n%d %d\n%d\n' % (SIZE, SIZE, maximum) + content)
    assert load(tmp_path / 'a.pgm') == grey(levels)


def test_16_bit_png(tmp_path):
    for values, levels in (([0, 257, 514], [0, 1, 2]), ([65535, 32896], [255, 128])):
        Image.fromarray(rows(values).astype('uint16')).save(str(tmp_path / 'a.png'))
        assert load(tmp_path / 'a.png') == grey(levels)


def test_modes_of_8_bits(tmp_path):
    levels = rows([0, 5, 200, 255]).astype('uint8')
    path = tmp_path / 'a.png'
    Image.fromarray(levels).save(str(path))
    assert load(path) == grey([0, 5, 200, 255])
    Image.merge('LA', [Image.fromarray(levels), Image.new('L', (SIZE, SIZE), 7)]).save(str(path))
    assert load(path) == grey([0, 5, 200, 255])
    palette = Image.fromarray(rows([0, 1, 2]).astype('uint8'), 'P')
    palette.putpalette([9, 8, 7, 1, 2, 3, 250, 0, 4])
    palette.save(str(path))
    assert load(path)[:4] == [[9, 8, 7], [1, 2, 3], [250, 0, 4], [9, 8, 7]]
    Image.fromarray(rows([0, 1, 1]).astype(bool)).save(str(path))
    assert load(path) == grey([0, 255, 255])
    cmyk = Image.new('CMYK', (SIZE, SIZE), (255, 0, 0, 0))
    cmyk.save(str(tmp_path / 'a.tif'))
    assert load(tmp_path / 'a.tif')[0] == [0, 255, 255]  # cyan


@pytest.mark.parametrize('image, expected', [
    (Image.new('P', (SIZE, SIZE), 1), [1, 2, 3]), (Image.new('CMYK', (SIZE, SIZE), (255, 0, 0, 0)), [0, 255, 255]),
    (Image.new('HSV', (SIZE, SIZE), (0, 255, 255)), [255, 0, 0]), (Image.new('F', (SIZE, SIZE), 0.2), [51] * 3),
    (Image.new('I;16', (SIZE, SIZE), 514), [2] * 3), (Image.new('1', (SIZE, SIZE), 1), [255] * 3),
    (Image.new('LA', (SIZE, SIZE), (5, 9)), [5] * 3), (Image.new('RGBA', (SIZE, SIZE), (5, 6, 7, 0)), [5, 6, 7])])
def test_pil_images_of_a_users_function(image, expected):
    """They are read by their mode, as files are; the numbers of a palette are no pixels."""
    if image.mode == 'P':
        image.putpalette([9, 9, 9, 1, 2, 3])
    source = reader.as_source([(image, 0)], ['digits', False, 16])
    assert source.images.dtype == np.uint8 and (source.images == np.reshape(expected, (1, 3, 1, 1))).all()


# ---------------------------------------------------------------------------------------------------------------------
# Files that are no photos
# ---------------------------------------------------------------------------------------------------------------------


def png(width, height):
    """The beginning of a PNG that says it has width x height pixels."""
    file = io.BytesIO()
    Image.new('L', (1, 1)).save(file, 'PNG')
    content = file.getvalue()
    header = b'IHDR' + struct.pack('>II', width, height) + content[24:29]
    return content[:12] + header + struct.pack('>I', zlib.crc32(header)) + content[33:]


@pytest.mark.parametrize('content, reason', [
    (png(60000, 60000), 'decompression bomb'), (png(12000, 12000), '12000 x 12000 pixels, more than'),
    (png(9000, 9000), '9000 x 9000 pixels, more than'), (png(40, 40), 'truncated'), (b'', 'it is no image'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch harm) (w) file\n', 'it is no image')])
def test_image_files_that_cannot_be_read(tmp_path, content, reason):
    path = tmp_path / 'a.jpg'
    path.write_bytes(content)
    files = ImageFiles([str(path)], [0], [''], AS_IT_IS, transforms.Augmentation(*transforms.IMAGENET_PIXELS), 1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        errors = files.batch([0], np.zeros((1, files.draws)))[2]
    assert f'{path} cannot be read as an image: ' in errors[0] and reason in errors[0]
