"""Write train_list.txt and val_list.txt, for train_imagenet.py and search.py, from a folder of images.

    python examples/make_image_lists.py --data=DIR
    python search.py --dataset=imagenet --data_dir=DIR
    python train_imagenet.py --data_dir=DIR

DIR holds train/<class>/* and val/<class>/*, or <class>/*, of which a fifth of each class, drawn by --seed, is for the
validation; the names are those that --dataset=folder takes. classes.txt gets the name of class 0 in its first line, and
so on: the classes are in alphabetical order.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from runtime.log import quiet_warnings, start_logging  # noqa: E402

if __name__ == '__main__':
    quiet_warnings()  # of importing Paddle

from pipeline.folders import image_files  # noqa: E402
from runtime.errors import UserError  # noqa: E402
from runtime.files import write_text  # noqa: E402
from runtime.flags import ArgumentParser, integer, path  # noqa: E402
from runtime.script import run_script  # noqa: E402

FLAGS = [
    ('data', path, None, 'the folder with the images, which gets the lists'),
    ('seed', integer(0, 2**32 - 1), 0, 'random seed of the images for the validation, where there are no parts yet'),
]


def main():
    parser = ArgumentParser(__doc__)
    parser.add_flags('lists', FLAGS)
    args = parser.parse_args()
    if not os.path.isdir(str(args.data)):
        wrong = '' if args.data is None else f'{args.data} is not a folder; '
        parser.error(f'argument --data: {wrong}give the folder with the images')
    start_logging(None)
    for name in ('train_list.txt', 'val_list.txt', 'classes.txt'):
        if os.path.lexists(os.path.join(args.data, name)):
            raise UserError(f'{os.path.join(args.data, name)} is there already: move it away first')
    lists = {name: image_files(args.data, is_train, args.seed)
             for name, is_train in (('train_list.txt', True), ('val_list.txt', False))}
    texts = {name: list_text(args.data, paths, labels) for name, (paths, labels, _) in lists.items()}
    for name, (paths, labels, classes) in lists.items():
        write_text(os.path.join(args.data, name), texts[name])
        print(f'{name}: {len(paths)} images of {len(set(labels))} classes')
    write_text(os.path.join(args.data, 'classes.txt'), ''.join(name + '\n' for name in classes))


def list_text(folder, paths, labels):
    """The lines of a list of images in a folder. Raises UserError for a path that a list cannot name."""
    for image in paths:
        if '\n' in image or '\r' in image:
            raise UserError(f'{folder} holds a file whose name has a line break, which a list cannot name')
        try:
            image.encode()
        except UnicodeEncodeError:
            raise UserError(f'{folder} holds a file whose name is not UTF-8 text, which a list cannot name: {image!r}')
    return ''.join(f'{os.path.relpath(image, folder)} {label}\n' for image, label in zip(paths, labels))


if __name__ == '__main__':
    run_script(main)
