"""Train the network of a genotype on ImageNet, from scratch.

    python train_imagenet.py --arch=PC_DARTS --data_dir=dataset/ILSVRC2012
    python train_imagenet.py --eval_only --pretrained=eval_imagenet/best_model.pdparams --data_dir=dataset/ILSVRC2012
    python train_imagenet.py --export=inference/model --pretrained=eval_imagenet/best_model.pdparams
    python -m paddle.distributed.launch --selected_gpus=0,1,2,3 --log_dir ./mylog train_imagenet.py --use_data_parallel 1

--data_dir holds train_list.txt and val_list.txt, a line `relative/path label` for each image, and the images.
It leaves best_model.pdparams with best_model.json, train.log and metrics.jsonl in --model_save_dir.
"""
import sys

from runtime.flags import (
    DEVICE_FLAGS,
    PRECISION_FLAGS,
    USE_FLAGS,
    ArgumentParser,
    given_flags,
    integer,
    network_flags,
    number,
    positive,
    reader_flags,
    run_flags,
)
from runtime.log import logger
from runtime.script import run_script, start_script

DROPOUT_FLAGS = [
    ('dropout', number(0, 1), 0.0, 'probability of dropping a feature before the classifier'),
]
TRAIN_FLAGS = [
    ('epochs', integer(1), 250, 'passes over the training set'),
    ('batch_size', integer(1), 128, 'images a step, on each card'),
    ('learning_rate', positive(), 0.1, 'initial learning rate'),
    ('decay_rate', positive(), 0.97, 'the learning rate is multiplied by this after every epoch'),
    ('momentum', number(0, 1), 0.9, 'of SGD'),
    ('weight_decay', number(0), 3e-5, 'L2 decay of the weights'),
    ('grad_clip', positive(), 5.0, 'largest global norm of the gradient'),
    ('label_smooth', number(0, 1), 0.1, 'epsilon of label smoothing, in training only'),
]
DATA_FLAGS = [
    ('data_dir', str, 'dataset/ILSVRC2012', 'the folder with the images, train_list.txt and val_list.txt'),
    ('trainset_num', integer(1), 1281167, 'use at most so many training images'),
]
IMAGE_SHAPE = [3, 224, 224]


def parse_arguments(argv=None):
    parser = ArgumentParser(__doc__)
    network = network_flags(init_channels=48, layers=14, class_num=1000, drop_path_prob=0.0)
    for title, table in (('network', network + DROPOUT_FLAGS), ('training', TRAIN_FLAGS),
                         ('data', DATA_FLAGS + reader_flags(num_workers=4)), ('use of a trained network', USE_FLAGS),
                         ('device', DEVICE_FLAGS + PRECISION_FLAGS),
                         ('run', run_flags(log_freq=100, model_save_dir='eval_imagenet'))):
        parser.add_flags(title, table)
    return parser.check_use(parser.parse_args(argv))


def main():
    args = parse_arguments()
    given = given_flags(sys.argv[1:])
    start_script(args, None if args.eval_only or args.export or args.summary else args.model_save_dir, given)
    # Paddle and what needs it: seconds of import that --help and a wrong argument don't pay.
    import paddle

    from pipeline.loader import ORDER, TRAIN, VALID, BatchLoader, generator
    from reader import at_most, class_count, imagenet_reader
    from training import evaluation as trainer
    from training.summary import summary

    description = None
    if args.pretrained:
        model, description = trainer.load(args.pretrained, 'NetworkImageNet', args, given, dropout=args.dropout)
        args.class_num = description['class_num']
        given.add('class_num')
    if args.summary:
        network = model if description else trainer.build(trainer.describe('NetworkImageNet', args), dropout=args.dropout)
        print(summary(network, IMAGE_SHAPE, args.batch_size))
        return
    if args.export:
        trainer.export(model, args.export, IMAGE_SHAPE)
        if not args.eval_only:
            return
    valid_images = imagenet_reader(args.data_dir, 'val')
    if not args.eval_only:
        train_images = imagenet_reader(args.data_dir, 'train')
        if 'class_num' in given:
            train_images.checked(args.class_num)  # by the line of the list
        args.class_num = class_count(train_images, args, given)
    valid_loader = BatchLoader(valid_images.checked(args.class_num), args.batch_size, False, VALID, args, train=False)
    if description is None:
        description = trainer.describe('NetworkImageNet', args)
        model = trainer.build(description, dropout=args.dropout)
    trainer.log_size(model, IMAGE_SHAPE)
    if args.eval_only:
        trainer.score(model, valid_loader, args)
        return
    chosen = at_most(generator(args, ORDER).permutation(len(train_images)), args.trainset_num)
    train_loader = BatchLoader(train_images.subset(chosen), args.batch_size, True, TRAIN, args)
    logger.info('%d images train, %d validate', len(chosen), len(valid_images))
    schedule = paddle.optimizer.lr.ExponentialDecay(args.learning_rate, args.decay_rate)
    trainer.train(model, description, train_loader, valid_loader, schedule, args, log_epoch)


def log_epoch(metrics, best):
    logger.info('Epoch %d, train_top1 %.6f, train_top5 %.6f', metrics['epoch'], metrics['train_acc'], metrics['train_acc5'])
    logger.info('Epoch %d, valid_top1 %.6f, valid_top5 %.6f, best_valid_top1 %.6f', metrics['epoch'], metrics['valid_acc'],
                metrics['valid_acc5'], best)


if __name__ == '__main__':
    run_script(main)
