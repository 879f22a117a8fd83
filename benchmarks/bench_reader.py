"""How many images a second one process reads and augments, beside a pipeline of one PIL image at a time.

    python benchmarks/bench_reader.py                                       CIFAR-sized images, in memory
    python benchmarks/bench_reader.py --data_dir=PATH [--num_workers=2]   photos of a folder with train_list.txt too

The peer of the CIFAR-sized images is written with paddle.vision.transforms: pad and crop, flip, to array, normalise,
cutout; that of the photos with PIL and numpy: decode, crop and resize, flip, to array, normalise. Ours and the peer run
in turn, in one process; the medians of the rounds and their ratio are printed, and the peak of the process's memory.
"""
import argparse
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402

from runtime.log import peak_memory_mb, quiet_warnings  # noqa: E402

quiet_warnings()

from paddle.vision import transforms as T  # noqa: E402

import reader  # noqa: E402
from pipeline import loader, sources, transforms  # noqa: E402


def per_image(images, cutout_length):
    """The peer: a function that augments some images one after the other."""
    mean, std = [[255 * value for value in values] for values in transforms.CIFAR_PIXELS]
    pipeline = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.Transpose(), T.Normalize(mean, std)])
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]

    def batch(indices):
        out = np.stack([pipeline(pictures[i]) for i in indices])
        for image in out if cutout_length else ():
            y, x = np.random.randint(32, size=2)
            half = cutout_length // 2
            image[:, max(y - half, 0):y + half, max(x - half, 0):x + half] = 0
        return out
    return batch


def vectorised(images, cutout_length):
    """Ours, on whole batches."""
    augmentation = transforms.Augmentation(*transforms.CIFAR_PIXELS, padding=4, flip=True, cutout_length=cutout_length)
    source = sources.ArrayImages(images, np.zeros(len(images), 'int64'), augmentation, 10)
    return lambda indices: source.batch(indices, np.random.random((len(indices), source.draws)))[0]


def images_per_second(batch, count, total, batch_size):
    start = time.perf_counter()
    for _ in range(total // batch_size):
        batch(np.random.randint(count, size=batch_size))
    return total // batch_size * batch_size / (time.perf_counter() - start)


def bench_cifar(rounds, batch_size):
    images = np.random.default_rng(0).integers(0, 256, (10000, 3, 32, 32), 'uint8')
    for cutout_length in (0, 16):
        ours, peer = vectorised(images, cutout_length), per_image(images, cutout_length)
        rates = [(images_per_second(ours, len(images), 50 * batch_size, batch_size),
                  images_per_second(peer, len(images), 5 * batch_size, batch_size)) for _ in range(rounds + 1)][1:]
        ratios = [a / b for a, b in rates]
        print('CIFAR, {}: {:.0f} images/s, one at a time {:.0f} images/s, ratio {:.1f} ({:.1f} to {:.1f})'.format(
            'cutout 16' if cutout_length else 'no cutout', *map(statistics.median, zip(*rates)),
            statistics.median(ratios),
            min(ratios), max(ratios)))


def plain_photos(source):
    """The peer: a function that decodes and augments some photos one after the other, with the crops of the source."""
    mean, std = [np.array(values, 'float32') * 255 for values in transforms.IMAGENET_PIXELS]

    def batch(indices):
        images = []
        for path, uniform in zip([source.paths[i] for i in source.indices[indices]],
                                 np.random.random((len(indices), source.crop.draws))):
            with Image.open(path) as image:
                box = source.crop.box(*image.size, uniform)
                image = image.convert('RGB').resize((source.crop.size, source.crop.size), Image.BILINEAR, box=box)
            if source.crop.flip(uniform):
                image = ImageOps.mirror(image)
            images.append(((np.asarray(image, 'float32') - mean) / std).transpose(2, 0, 1))
        return np.stack(images)
    return batch


def bench_photos(data_dir, rounds, batch_size, num_workers):
    source = reader.imagenet_reader(data_dir, 'train')
    source = source.subset(np.resize(np.arange(len(source)), 1000))
    peer = plain_photos(source)
    rates = [(images_per_second(lambda indices: source.batch(indices, np.random.random((len(indices), source.draws))),
                                len(source), 4 * batch_size, batch_size),
              images_per_second(peer, len(source), 4 * batch_size, batch_size)) for _ in range(rounds + 1)][1:]
    ratios = [a / b for a, b in rates]
    print('photos to 224x224, batches: {:.0f} images/s, one at a time {:.0f} images/s, ratio {:.2f} ({:.2f} to '
          '{:.2f})'.format(*map(statistics.median, zip(*rates)), statistics.median(ratios), min(ratios), max(ratios)))
    for workers in (0, num_workers):
        rates = []
        for _ in range(rounds):
            batches = loader.BatchLoader(source, batch_size, shuffle=True, stream=loader.TRAIN, workers=workers)
            start = time.perf_counter()
            count = sum(image.shape[0] for image, _ in batches)
            rates.append(count / (time.perf_counter() - start))
        print('photos to 224x224, {}: {:.0f} images/s ({:.0f} to {:.0f})'.format(
            f'{workers} worker processes' if workers else 'main process', statistics.median(rates), min(rates),
            max(rates)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5, help='(default: 5)')
    parser.add_argument('--batch_size', type=int, default=64, help='(default: 64)')
    parser.add_argument('--data_dir', help='a folder with train_list.txt')
    parser.add_argument('--num_workers', type=int, default=2, help='for the photos (default: 2)')
    args = parser.parse_args()
    bench_cifar(args.rounds, args.batch_size)
    if args.data_dir:
        bench_photos(args.data_dir, args.rounds, args.batch_size, args.num_workers)
    print(f'peak memory {peak_memory_mb():.0f} MB')


if __name__ == '__main__':
    main()
