"""Class names and probabilities of image files: --predict of train.py and train_imagenet.py."""
import json

import numpy as np
import paddle

from runtime.errors import UserError, printable
from runtime.files import MAX_JSON_BYTES
from runtime.log import logger
from training.engine import Precision, logits_of, to_batch

TOP = 5  # classes that are printed for an image


def with_images(description, source, data=None):
    """The description of a network (evaluation.py) with the images that it is trained on.

    source: the training images. data: where they come from, {flag: value}. Also kept are `class_names` in the order of
    the labels, where the classes have names, and `normalised`, false for a user's arrays that are used as they are.
    """
    images = dict(image_shape=list(source.image_shape), normalised=source.transform is not None)
    if data is not None:
        images['data'] = data
    if source.class_names is not None:
        images['class_names'] = source.class_names
        if len(json.dumps(source.class_names)) > MAX_JSON_BYTES // 2:  # best_model.json must stay below it
            logger.info('the names of the %d classes are too long to be kept', len(source.class_names))
            del images['class_names']
    return dict({name: value for name, value in description.items() if name != 'class_names'}, **images)


def class_names(description):
    """The names of a network's classes, in the order of the labels; a class without a name has its number.

    Raises UserError for a description that holds something else.
    """
    names = description.get('class_names', [])
    count = description['class_num']
    if not isinstance(names, list) or len(names) > count or not all(isinstance(name, str) for name in names):
        raise UserError(f'--pretrained: its .json is wrong: class_names must be a list of at most {count} texts, it is '
                        f'{names!r:.80}')
    return names + [str(label) for label in range(len(names), count)]


def square_side(description, image_shape):
    """The height and width in pixels that image files are brought to. Raises UserError for a network of other images.
    """
    if description.get('normalised', True) is not True:
        raise UserError('--predict: the network was trained on arrays that were used as they are, so how an image file '
                        'becomes such an array is not known')
    if image_shape[1] != image_shape[2]:
        raise UserError(f'--predict: the network was trained on images of {image_shape[1]}x{image_shape[2]} pixels; '
                        'image files are brought to squares')
    return image_shape[1]


@paddle.no_grad()
def predict(model, loader, names, *, precision_options, as_json):
    """Print the most probable classes of image files, a line for each, on standard output.

    loader: batches of reader.predict_loader, whose labels are the numbers of the paths. names: of the classes.
    as_json: print a JSON object for each image, {"path": ..., "predictions": [{"class", "label", "probability"}]}.
    Raises UserError (status 1) for logits that are not finite.
    """
    precision = Precision(precision_options, model)
    model.eval()
    for batch in loader:
        image, number = to_batch(batch)
        logits = logits_of(model, image, precision).numpy()
        if not np.isfinite(logits).all():
            raise UserError('--predict: the network gives values that are not finite', status=1)
        for i, found in zip(number.flatten().tolist(), probabilities(logits)):
            print(_line(loader.source.paths[i], found, names, as_json))


def probabilities(logits):
    """The softmax of each row, logits [N, classes], in double precision."""
    exponentials = np.exp(logits.astype('float64') - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def _line(path, found, names, as_json):
    best = np.argsort(-found, kind='stable')[:TOP].tolist()
    if as_json:
        return json.dumps({'path': path, 'predictions': [
            {'class': names[label], 'label': label, 'probability': float(found[label])} for label in best]})
    return printable(f'{path}: ' + ', '.join(f'{names[label]} {found[label]:.4f}' for label in best))
