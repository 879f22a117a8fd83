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
    genotype_of,
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
    writes_files = not (args.eval_only or args.predict or args.export or args.summary)
    start_script(args.model_save_dir if writes_files else None, arguments=vars(args), use_gpu=args.use_gpu,
                 use_data_parallel=args.use_data_parallel, seed=args.seed, batch_size=args.batch_size,
                 default_learning_rate=None if 'learning_rate' in given else args.learning_rate)
    # Imported here: Paddle takes seconds to import, which --help and errors in arguments do not need.
    from model import NetworkImageNet
    from nas import accelerate
    from pipeline.loader import ORDER, TRAIN, VALID, BatchLoader, generator
    from reader import first_images, predict_loader
    from training import evaluation, prediction
    from training.export import export
    from training.summary import summary

    def described(class_num):
        return evaluation.describe(NetworkImageNet, genotype_of(args.arch), init_channels=args.init_channels,
                                   layers=args.layers, class_num=class_num, auxiliary=args.auxiliary)

    model = description = None
    class_num = args.class_num if 'class_num' in given else None
    if args.pretrained:
        must_match = given if not writes_files else given - {'class_num'}  # training may change the number of classes
        model, description = evaluation.load(args.pretrained, NetworkImageNet, described(args.class_num), must_match,
                                             dropout=args.dropout)
        if not writes_files:
            class_num = description['class_num']
    images = [3, args.image_size, args.image_size]
    if description is not None and 'image_size' not in given:
        images = evaluation.image_shape_of(description, default=images)
        args.image_size = images[1]  # which the checkpoints keep
    if args.summary:
        model = model or evaluation.build(NetworkImageNet, described(args.class_num), dropout=args.dropout)
        print(summary(model, images, args.batch_size))
        return
    if args.export:
        export(model, args.export, images, args.format)
        if not args.eval_only:
            return
    precision_options = dict(level=args.amp_level, dtype=args.amp_dtype)
    if args.predict:
        loader = predict_loader(args.batch_size, 'imagenet', prediction.square_side(description, images), args)
        prediction.predict(accelerate(model), loader, prediction.class_names(description),
                           precision_options=precision_options, as_json=args.json)
        return
    if not args.eval_only:
        evaluation.check_image_size(NetworkImageNet, description or described(args.class_num), images)
    loader_options = dict(seed=args.seed, workers=args.num_workers if args.use_multiprocess else 0,
                          max_bad_images=args.max_bad_images)
    train_images, valid_images, class_num = read_images(args, images[1], class_num)
    valid_loader = BatchLoader(valid_images, args.batch_size, shuffle=False, stream=VALID, train=False,
                               **loader_options)
    if description is None:
        description = described(class_num)
        model = evaluation.build(NetworkImageNet, description, dropout=args.dropout)
    elif not args.eval_only:
        model, description = evaluation.with_classes(NetworkImageNet, model, description, class_num,
                                                     dropout=args.dropout)
    if not args.eval_only:
        description = prediction.with_images(description, train_images)
    evaluation.log_size(model, images)
    if args.eval_only:
        evaluation.score(accelerate(model), valid_loader, precision_options)
        return
    chosen = first_images(generator(args.seed, ORDER).permutation(len(train_images)), args.trainset_num)
    train_loader = BatchLoader(train_images.subset(chosen), args.batch_size, shuffle=True, stream=TRAIN,
                               **loader_options)
    logger.info('%d training images, %d validation images', len(chosen), len(valid_images))
    train(accelerate(model), description, train_loader, valid_loader, args)


def read_images(args, size, class_num):
    """(training images or, with --eval_only, None; validation images; number of classes), of `size` pixels a side.

    class_num: None for the number that the training images have. Raises UserError for labels beyond it.
    """
    from reader import class_count, imagenet_reader

    train_images, valid_images = None, imagenet_reader(args.data_dir, 'val', size)
    if not args.eval_only:
        train_images = imagenet_reader(args.data_dir, 'train', size, args.augment)
        if class_num is not None:
            train_images.check_labels(class_num)  # names the line of the list
        class_num = class_count(train_images, class_num)
    valid_images.check_labels(class_num)
    return train_images, valid_images, class_num


def train(model, description, train_loader, valid_loader, args):
    """Train a network by the flags. description: of best_model.json."""
    import paddle

    from pictures.vdl import visual_log
    from training import evaluation
    from training.additions import with_warmup

    evaluation.train(
        model, description, train_loader, valid_loader,
        schedule=with_warmup(paddle.optimizer.lr.ExponentialDecay(args.learning_rate, args.decay_rate),
                             args.warmup_epochs),
        epochs=args.epochs,
        optimizer_options=dict(momentum=args.momentum, weight_decay=args.weight_decay, grad_clip=args.grad_clip),
        loss_options=dict(auxiliary_weight=args.auxiliary_weight, label_smooth=args.label_smooth),
        run_options=dict(resume=args.resume, seed=args.seed, save_freq=args.save_freq, keep=args.keep,
                         arguments=dict(vars(args), class_num=description['class_num'],
                                        genotype=description['genotype']),
                         on_epoch=visual_log(args.model_save_dir) if args.use_vdl else None),
        drop_path_prob=args.drop_path_prob,
        addition_options=dict(ema=args.ema, mixup=args.mixup, cutmix=args.cutmix, accumulate=args.accumulate),
        precision_options=dict(level=args.amp_level, dtype=args.amp_dtype),
        save_dir=args.model_save_dir,
        log_freq=args.log_freq,
        log_epoch=log_epoch)


def log_epoch(metrics, best):
    logger.info('Epoch %d, train_top1 %.6f, train_top5 %.6f', metrics['epoch'], metrics['train_acc'],
                metrics['train_acc5'])
    logger.info('Epoch %d, valid_top1 %.6f, valid_top5 %.6f, best_valid_top1 %.6f', metrics['epoch'],
                metrics['valid_acc'], metrics['valid_acc5'], best)


if __name__ == '__main__':
    run_script(main)
