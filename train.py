r"""Train the network of a genotype on CIFAR-10, evaluate, apply or export it.

    python train.py --arch=PC_DARTS                                 the example's cell, 600 epochs on CIFAR-10
    python train.py --arch=search_cifar/genotype.json               the cell that search.py found
    python train.py --dataset=digits --arch=search_digits/genotype.json --auxiliary=False --init_channels=16 \
        --layers=5 --epochs=12 --batch_size=32 --learning_rate=0.05 --cutout=False --drop_path_prob=0
    python train.py --eval_only --pretrained=eval_cifar/best_model.pdparams
    python train.py --predict=photos --pretrained=eval_cifar/best_model.pdparams
    python train.py --export=inference/model --pretrained=eval_cifar/best_model.pdparams
    python -m paddle.distributed.launch --selected_gpus=0,1,2,3 --log_dir ./mylog train.py --use_data_parallel 1

Output files in --model_save_dir: best_model.pdparams with best_model.json, train.log and metrics.jsonl.
"""
import sys

from runtime.errors import UserError
from runtime.flags import (
    ADDITION_FLAGS,
    DATA_FLAGS,
    DEVICE_FLAGS,
    PRECISION_FLAGS,
    USE_FLAGS,
    ArgumentParser,
    boolean,
    checked_value,
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
from runtime.parallel import set_seed
from runtime.script import run_script, start_script

TRAIN_FLAGS = [
    ('epochs', integer(1), 600, 'number of training epochs'),
    ('batch_size', integer(1), 96, 'batch size per GPU'),
    ('learning_rate', positive(), 0.025, 'initial learning rate; it decreases to 0 along a cosine over all epochs'),
    ('momentum', number(0, 1), 0.9, 'momentum of SGD'),
    ('weight_decay', number(0), 3e-4, 'L2 weight decay'),
    ('grad_clip', positive(), 5.0, 'maximum global norm of the gradient'),
]
TRAIN_DATA_FLAGS = [
    ('data', path, 'dataset/cifar10', 'the CIFAR archive or the folder it unpacks to; if the default does not exist, '
                                      'or for cifar100, dataset/ beside this script, downloaded; with '
                                      '--dataset=folder, the folder'),
    ('cutout', boolean, True, 'mask a random square of every training image'),
]
# flags that best_model.json remembers: the images a network was trained on
DATA_OF_NETWORK = ('dataset', 'image_size', 'seed')


def parse_arguments(argv=None):
    parser = ArgumentParser(__doc__)
    for title, table in (('network', network_flags(init_channels=36, layers=20, class_num=10, drop_path_prob=0.2)),
                         ('training', TRAIN_FLAGS + ADDITION_FLAGS),
                         ('data', DATA_FLAGS + TRAIN_DATA_FLAGS + reader_flags(num_workers=1)),
                         ('use of a trained network', USE_FLAGS), ('device', DEVICE_FLAGS + PRECISION_FLAGS),
                         ('run', run_flags(log_freq=50, model_save_dir='eval_cifar'))):
        parser.add_flags(title, table)
    return parser.check_additions(parser.check_use(parser.parse_data(argv)))


def main():
    args = parse_arguments()
    given = given_flags(sys.argv[1:])
    trains = not (args.eval_only or args.predict or args.export or args.summary)
    start_script(args.model_save_dir if trains else None, arguments=vars(args), use_gpu=args.use_gpu,
                 use_data_parallel=args.use_data_parallel, seed=args.seed, batch_size=args.batch_size,
                 default_learning_rate=None if 'learning_rate' in given else args.learning_rate)
    # Imported here: Paddle takes seconds to import, which --help and errors in arguments do not need.
    from nas import accelerate
    from reader import image_shape
    from training import evaluation
    from training.export import export

    model = description = None
    if args.pretrained:
        model, description, args = load_pretrained(args, given, trains)
    shape = image_shape(args)
    if description is not None and 'image_size' not in given:
        shape = evaluation.image_shape_of(description, default=shape)
    if args.summary:
        print_summary(model, shape, args, given)
        return
    if args.export:
        export(model, args.export, shape, args.format)
    if args.predict:
        predict(accelerate(model), description, shape, args)
    if args.eval_only:
        score(model, description, args)
    if trains:
        model, description, *loaders = prepare_training(model, description, shape, args, given)
        train(accelerate(model), description, *loaders, args)


def load_pretrained(args, given, trains):
    """(network, its description, the arguments with the data that it was trained on) of --pretrained."""
    from model import NetworkCIFAR
    from training import evaluation

    must_match = given - {'class_num'} if trains else given  # training may change the number of classes
    wanted = evaluation.describe(NetworkCIFAR, vars(args), args.class_num)
    model, description = evaluation.load(args.pretrained, NetworkCIFAR, wanted, must_match)
    seed, args = args.seed, with_data_of(description, args, given)
    if args.seed != seed:
        set_seed(args.seed)
    if args.dataset == 'folder' and 'data' not in given and (trains or args.eval_only):
        raise UserError('--data: the network was trained with --dataset=folder: give the folder with a subfolder of '
                        'images for each class')
    return model, description, args


def print_summary(model, shape, args, given):
    """Print what --summary asks for. model: of --pretrained or None. shape: [3, H, W] of the images."""
    from model import NetworkCIFAR
    from reader import class_count_without_data
    from training import evaluation
    from training.summary import summary

    if model is None:
        class_num = class_count_without_data(args, given)
        model = evaluation.build(NetworkCIFAR, evaluation.describe(NetworkCIFAR, vars(args), class_num))
    print(summary(model, shape, args.batch_size))


def predict(model, description, shape, args):
    """Print the classes of the images of --predict. shape: [3, H, W] of the images that the network takes."""
    from reader import predict_loader
    from training import prediction

    loader = predict_loader(args.batch_size, args.dataset, prediction.square_side(description, shape), args)
    prediction.predict(model, loader, prediction.class_names(description), precision_options=precision_options(args),
                       as_json=args.json)


def score(model, description, args):
    """Print the accuracy on the test images."""
    from nas import accelerate
    from reader import train_valid
    from training import evaluation

    test_loader = train_valid(args.batch_size, False, False, args)
    test_loader.source.check_labels(description['class_num'])
    evaluation.log_size(model, test_loader.source.image_shape)
    evaluation.score(accelerate(model), test_loader, precision_options(args))


def precision_options(args):
    from training.options import PrecisionOptions
    return PrecisionOptions(level=args.amp_level, dtype=args.amp_dtype)


def prepare_training(model, description, shape, args, given):
    """Read the data, and build a network for its classes or adapt that of --pretrained, if there is one.

    shape: [3, H, W] of the images. Returns (network, description, training batches, test batches).
    """
    from model import NetworkCIFAR
    from reader import class_count, train_valid
    from training import evaluation, prediction

    evaluation.check_image_size(NetworkCIFAR, description or vars(args), shape)
    test_loader = train_valid(args.batch_size, False, False, args)
    train_loader = train_valid(args.batch_size, True, True, args)
    class_num = class_count(train_loader, args.class_num if 'class_num' in given else None)
    test_loader.source.check_labels(class_num)
    if description is None:
        description = evaluation.describe(NetworkCIFAR, vars(args), class_num)
        model = evaluation.build(NetworkCIFAR, description)
    else:
        model, description = evaluation.with_classes(NetworkCIFAR, model, description, class_num)
    # The data of this training, also where --pretrained was trained on other data.
    description = prediction.with_images(description, train_loader.source,
                                         data={name: getattr(args, name) for name in DATA_OF_NETWORK})
    evaluation.log_size(model, test_loader.source.image_shape)
    return model, description, train_loader, test_loader


def train(model, description, train_loader, test_loader, args):
    """Train a network by the flags. description: of best_model.json."""
    import paddle

    from pictures.vdl import visual_log
    from training import evaluation
    from training.additions import with_warmup
    from training.options import AdditionOptions, LossOptions, OptimizerOptions, RunOptions

    evaluation.train(
        model, description, train_loader, test_loader,
        schedule=with_warmup(paddle.optimizer.lr.CosineAnnealingDecay(args.learning_rate,
                                                                      args.epochs - args.warmup_epochs),
                             args.warmup_epochs),
        epochs=args.epochs,
        save_dir=args.model_save_dir,
        log_freq=args.log_freq,
        drop_path_prob=args.drop_path_prob,
        optimizer_options=OptimizerOptions(momentum=args.momentum, weight_decay=args.weight_decay,
                                           grad_clip=args.grad_clip),
        loss_options=LossOptions(auxiliary_weight=args.auxiliary_weight),
        precision_options=precision_options(args),
        addition_options=AdditionOptions(ema=args.ema, mixup=args.mixup, cutmix=args.cutmix,
                                         accumulate=args.accumulate),
        run_options=RunOptions(arguments=dict(vars(args), class_num=description['class_num'],
                                              genotype=description['genotype']),
                               seed=args.seed, resume=args.resume, save_freq=args.save_freq, keep=args.keep,
                               on_epoch=visual_log(args.model_save_dir) if args.use_vdl else None),
        log_epoch=log_epoch)


def with_data_of(description, args, given):
    """The arguments with the data that a trained network was made for, where the flags do not say otherwise.

    Raises UserError for values that the flags would not take.
    """
    data = description.get('data', {})
    try:
        if not isinstance(data, dict):
            raise ValueError(f'data must be an object, it is {data!r:.80}')
        known = {name: checked_value(DATA_FLAGS + DEVICE_FLAGS, name, data[name]) for name in DATA_OF_NETWORK
                 if name not in given and data.get(name) is not None}
    except ValueError as error:
        raise UserError(f'--pretrained: its .json is wrong: {error}')
    return type(args)(**dict(vars(args), **known))


def log_epoch(metrics, best):
    logger.info('Epoch %d, train_acc %.6f', metrics['epoch'], metrics['train_acc'])
    logger.info('Epoch %d, valid_acc %.6f, best_valid_acc %.6f, valid_acc5 %.6f', metrics['epoch'],
                metrics['valid_acc'], best, metrics['valid_acc5'])


if __name__ == '__main__':
    run_script(main)
