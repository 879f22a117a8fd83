r"""Train the network of a genotype on CIFAR-10, from scratch.

    python train.py --arch=PC_DARTS                                 the example's cell, 600 epochs on CIFAR-10
    python train.py --arch=search_cifar/genotype.json               the cell that search.py found
    python train.py --dataset=digits --arch=search_digits/genotype.json --auxiliary=False --init_channels=16 --layers=5 \
        --epochs=12 --batch_size=32 --learning_rate=0.05 --cutout=False --drop_path_prob=0         less than a minute on 2 CPU cores
    python train.py --eval_only --pretrained=eval_cifar/best_model.pdparams
    python train.py --export=inference/model --pretrained=eval_cifar/best_model.pdparams
    python -m paddle.distributed.launch --selected_gpus=0,1,2,3 --log_dir ./mylog train.py --use_data_parallel 1

It leaves best_model.pdparams with best_model.json, train.log and metrics.jsonl in --model_save_dir.
"""
import sys

from runtime.flags import (
    DATA_FLAGS,
    DEVICE_FLAGS,
    PRECISION_FLAGS,
    USE_FLAGS,
    ArgumentParser,
    boolean,
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

TRAIN_FLAGS = [
    ('epochs', integer(1), 600, 'passes over the training set'),
    ('batch_size', integer(1), 96, 'images a step, on each card'),
    ('learning_rate', positive(), 0.025, 'initial learning rate, falling to 0 along a cosine over all epochs'),
    ('momentum', number(0, 1), 0.9, 'of SGD'),
    ('weight_decay', number(0), 3e-4, 'L2 decay of the weights'),
    ('grad_clip', positive(), 5.0, 'largest global norm of the gradient'),
]
CIFAR_FLAGS = [
    ('data', str, 'dataset/cifar10', 'the CIFAR archive or the folder it unpacks to; when the default is not there, or for '
                                     'cifar100, dataset/ beside this script, downloaded; with --dataset=folder, the folder'),
    ('cutout', boolean, True, 'blank a square of every training image'),
]


def parse_arguments(argv=None):
    parser = ArgumentParser(__doc__)
    for title, table in (('network', network_flags(init_channels=36, layers=20, class_num=10, drop_path_prob=0.2)),
                         ('training', TRAIN_FLAGS), ('data', DATA_FLAGS + CIFAR_FLAGS + reader_flags(num_workers=1)),
                         ('use of a trained network', USE_FLAGS), ('device', DEVICE_FLAGS + PRECISION_FLAGS),
                         ('run', run_flags(log_freq=50, model_save_dir='eval_cifar'))):
        parser.add_flags(title, table)
    return parser.check_use(parser.parse_data(argv))


def main():
    args = parse_arguments()
    given = given_flags(sys.argv[1:])
    start_script(args, None if args.eval_only or args.export or args.summary else args.model_save_dir, given)
    # Paddle and what needs it: seconds of import that --help and a wrong argument don't pay.
    import paddle

    from reader import class_count, image_shape, train_valid
    from training import evaluation as trainer
    from training.summary import summary

    description = None
    if args.pretrained:
        model, description = trainer.load(args.pretrained, 'NetworkCIFAR', args, given)
        args.class_num = description['class_num']
    if args.summary:
        print(summary(model if description else trainer.build(trainer.describe('NetworkCIFAR', args)), image_shape(args), args.batch_size))
        return
    if args.export:
        trainer.export(model, args.export, description.get('image_shape', [3, 32, 32]))
        if not args.eval_only:
            return
    test_loader = train_valid(args.batch_size, False, False, args)
    shape = test_loader.source.image_shape
    if args.eval_only:
        trainer.log_size(model, shape)
        trainer.score(model, test_loader, args)
        return
    train_loader = train_valid(args.batch_size, True, True, args)
    classes = class_count(train_loader, args, given | ({'class_num'} if description else set()))
    if description is None:
        args.class_num = classes
        description = trainer.describe('NetworkCIFAR', args)
        model = trainer.build(description)
    # Of the data it is trained on now, also where --pretrained was trained on other data.
    description = dict(description, image_shape=shape, data={name: getattr(args, name) for name in trainer.DATA})
    trainer.log_size(model, shape)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(args.learning_rate, args.epochs)
    trainer.train(model, description, train_loader, test_loader, schedule, args, log_epoch)


def log_epoch(metrics, best):
    logger.info('Epoch %d, train_acc %.6f', metrics['epoch'], metrics['train_acc'])
    logger.info('Epoch %d, valid_acc %.6f, best_valid_acc %.6f, valid_acc5 %.6f', metrics['epoch'], metrics['valid_acc'], best,
                metrics['valid_acc5'])


if __name__ == '__main__':
    run_script(main)
