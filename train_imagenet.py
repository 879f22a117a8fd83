r"""Train the network of a genotype on ImageNet, evaluate, apply or export it.

    python train_imagenet.py --arch=PC_DARTS --data_dir=dataset/ILSVRC2012
    python train_imagenet.py --eval_only --pretrained=eval_imagenet/best_model.pdparams --data_dir=dataset/ILSVRC2012
    python train_imagenet.py --predict=photos --pretrained=eval_imagenet/best_model.pdparams
    python train_imagenet.py --export=inference/model --pretrained=eval_imagenet/best_model.pdparams
    python -m paddle.distributed.launch --selected_gpus=0,1,2,3 --log_dir ./mylog \
        train_imagenet.py --use_data_parallel 1

--data_dir holds the images, train_list.txt and val_list.txt, with a line `relative/path label` for each image.
Output files in --model_save_dir: best_model.pdparams with best_model.json, train.log and metrics.jsonl.
"""
import sys

from runtime.flags import (
    ADDITION_FLAGS,
    DEVICE_FLAGS,
    PRECISION_FLAGS,
    USE_FLAGS,
    ArgumentParser,
    given_flags,
    integer,
    network_flags,
    number,
    path,
    positive,
    reader_flags,
    run_flags,
)
from runtime.log import logger
from runtime.script import run_script, start_script

DROPOUT_FLAGS = [
    ('dropout', number(0, 1), 0.0, 'dropout probability before the classifier'),
]
TRAIN_FLAGS = [
    ('epochs', integer(1), 250, 'number of training epochs'),
    ('batch_size', integer(1), 128, 'batch size per GPU'),
    ('learning_rate', positive(), 0.1, 'initial learning rate'),
    ('decay_rate', positive(), 0.97, 'factor of the learning rate after every epoch'),
    ('momentum', number(0, 1), 0.9, 'momentum of SGD'),
    ('weight_decay', number(0), 3e-5, 'L2 weight decay'),
    ('grad_clip', positive(), 5.0, 'maximum global norm of the gradient'),
    ('label_smooth', number(0, 1), 0.1, 'epsilon of label smoothing, in training only'),
]
DATA_FLAGS = [
    ('data_dir', path, 'dataset/ILSVRC2012', 'the folder with the images, train_list.txt and val_list.txt'),
    ('trainset_num', integer(1), 1281167, 'maximum number of training images'),
    ('image_size', integer(32, 1024), 224, 'height and width in pixels of the images; without this flag, that of '
                                           '--pretrained'),
]


def parse_arguments(argv=None):
    parser = ArgumentParser(__doc__)
    network = network_flags(init_channels=48, layers=14, class_num=1000, drop_path_prob=0.0)
    for title, table in (('network', network + DROPOUT_FLAGS), ('training', TRAIN_FLAGS + ADDITION_FLAGS),
                         ('data', DATA_FLAGS + reader_flags(num_workers=4)), ('use of a trained network', USE_FLAGS),
                         ('device', DEVICE_FLAGS + PRECISION_FLAGS),
                         ('run', run_flags(log_freq=100, model_save_dir='eval_imagenet'))):
        parser.add_flags(title, table)
    return parser.check_additions(parser.check_use(parser.parse_args(argv)))


def main():
    args = parse_arguments()
    given = given_flags(sys.argv[1:])
    trains = not (args.eval_only or args.predict or args.export or args.summary)
    start_script(args.model_save_dir if trains else None, arguments=vars(args), use_gpu=args.use_gpu,
                 use_data_parallel=args.use_data_parallel, seed=args.seed, batch_size=args.batch_size,
                 default_learning_rate=None if 'learning_rate' in given else args.learning_rate)
    # Imported here: Paddle takes seconds to import, which --help and errors in arguments do not need.
    from model import NetworkImageNet
    from nas import accelerate
    from training import evaluation
    from training.export import export
    from training.summary import summary

    model = description = None
    if args.pretrained:
        must_match = given - {'class_num'} if trains else given  # training may change the number of classes
        wanted = evaluation.describe(NetworkImageNet, vars(args), args.class_num)
        model, description = evaluation.load(args.pretrained, NetworkImageNet, wanted, must_match, dropout=args.dropout)
    shape = [3, args.image_size, args.image_size]
    if description is not None and 'image_size' not in given:
        shape = evaluation.image_shape_of(description, default=shape)
        args.image_size = shape[1]  # which the checkpoints keep
    if args.summary:
        if model is None:
            described = evaluation.describe(NetworkImageNet, vars(args), args.class_num)
            model = evaluation.build(NetworkImageNet, described, dropout=args.dropout)
        print(summary(model, shape, args.batch_size))
        return
    if args.export:
        export(model, args.export, shape, args.format)
    if args.predict:
        predict(accelerate(model), description, shape, args)
    if args.eval_only:
        score(model, description, shape, args)
    if trains:
        model, description, *loaders = prepare_training(model, description, shape, args, given)
        train(accelerate(model), description, *loaders, args)


def predict(model, description, shape, args):
    """Print the classes of the images of --predict. shape: [3, H, W] of the images that the network takes."""
    from reader import predict_loader
    from training import prediction

    loader = predict_loader(args.batch_size, 'imagenet', prediction.square_side(description, shape), args)
    prediction.predict(model, loader, prediction.class_names(description), precision_options=precision_options(args),
                       as_json=args.json)


def score(model, description, shape, args):
    """Print the accuracy on the validation images, of shape [3, H, W]."""
    from nas import accelerate
    from reader import imagenet_reader
    from training import evaluation

    valid_images = imagenet_reader(args.data_dir, 'val', shape[1])
    valid_images.check_labels(description['class_num'])
    evaluation.log_size(model, shape)
    evaluation.score(accelerate(model), valid_batches(valid_images, args), precision_options(args))


def precision_options(args):
    from training.options import PrecisionOptions
    return PrecisionOptions(level=args.amp_level, dtype=args.amp_dtype)


def prepare_training(model, description, shape, args, given):
    """Read the data, of shape [3, H, W], and build a network for its classes or adapt that of --pretrained, if there is
    one.

    Returns (network, description, training batches, validation batches). Raises UserError for labels beyond
    --class_num.
    """
    from model import NetworkImageNet
    from reader import class_count, imagenet_reader
    from training import evaluation, prediction

    evaluation.check_image_size(NetworkImageNet, description or vars(args), shape)
    valid_images = imagenet_reader(args.data_dir, 'val', shape[1])
    train_images = imagenet_reader(args.data_dir, 'train', shape[1], args.augment)
    class_num = args.class_num if 'class_num' in given else None
    if class_num is not None:
        train_images.check_labels(class_num)  # names the line of the list
    class_num = class_count(train_images, class_num)
    valid_images.check_labels(class_num)
    if description is None:
        description = evaluation.describe(NetworkImageNet, vars(args), class_num)
        model = evaluation.build(NetworkImageNet, description, dropout=args.dropout)
    else:
        model, description = evaluation.with_classes(NetworkImageNet, model, description, class_num,
                                                     dropout=args.dropout)
    description = prediction.with_images(description, train_images)
    evaluation.log_size(model, shape)
    train_loader = train_batches(train_images, args)
    logger.info('%d training images, %d validation images', len(train_loader.source), len(valid_images))
    return model, description, train_loader, valid_batches(valid_images, args)


def train_batches(images, args):
    """Batches of at most --trainset_num of the training images, in another order each epoch."""
    from pipeline.loader import ORDER, TRAIN, BatchLoader, generator
    from reader import first_images, loader_options

    chosen = first_images(generator(args.seed, ORDER).permutation(len(images)), args.trainset_num)
    return BatchLoader(images.subset(chosen), args.batch_size, shuffle=True, stream=TRAIN, **loader_options(args))


def valid_batches(images, args):
    """Batches of all validation images."""
    from pipeline.loader import VALID, BatchLoader
    from reader import loader_options
    return BatchLoader(images, args.batch_size, shuffle=False, stream=VALID, train=False, **loader_options(args))


def train(model, description, train_loader, valid_loader, args):
    """Train a network by the flags. description: of best_model.json."""
    import paddle

    from pictures.vdl import visual_log
    from training import evaluation
    from training.additions import with_warmup
    from training.options import AdditionOptions, LossOptions, OptimizerOptions, RunOptions

    evaluation.train(
        model, description, train_loader, valid_loader,
        schedule=with_warmup(paddle.optimizer.lr.ExponentialDecay(args.learning_rate, args.decay_rate),
                             args.warmup_epochs),
        epochs=args.epochs,
        save_dir=args.model_save_dir,
        log_freq=args.log_freq,
        drop_path_prob=args.drop_path_prob,
        optimizer_options=OptimizerOptions(momentum=args.momentum, weight_decay=args.weight_decay,
                                           grad_clip=args.grad_clip),
        loss_options=LossOptions(auxiliary_weight=args.auxiliary_weight, label_smooth=args.label_smooth),
        precision_options=precision_options(args),
        addition_options=AdditionOptions(ema=args.ema, mixup=args.mixup, cutmix=args.cutmix,
                                         accumulate=args.accumulate),
        run_options=RunOptions(arguments=dict(vars(args), class_num=description['class_num'],
                                              genotype=description['genotype']),
                               seed=args.seed, resume=args.resume, save_freq=args.save_freq, keep=args.keep,
                               on_epoch=visual_log(args.model_save_dir) if args.use_vdl else None),
        log_epoch=log_epoch)


def log_epoch(metrics, best):
    logger.info('Epoch %d, train_top1 %.6f, train_top5 %.6f', metrics['epoch'], metrics['train_acc'],
                metrics['train_acc5'])
    logger.info('Epoch %d, valid_top1 %.6f, valid_top5 %.6f, best_valid_top1 %.6f', metrics['epoch'],
                metrics['valid_acc'], metrics['valid_acc5'], best)


if __name__ == '__main__':
    run_script(main)
