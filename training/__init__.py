"""The loops and files that train.py and train_imagenet.py share."""
