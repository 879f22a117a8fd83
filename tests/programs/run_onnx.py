"""Run ONNX models with onnxruntime, without Paddle. For each NAME.onnx in a folder, NAME.npz gets the logits of the
first n images of images.npy, for each of the batch sizes, as arrays named by n.

Arguments: the folder, the batch sizes.
"""
import glob
import os
import sys

import numpy as np
import onnxruntime

folder, sizes = sys.argv[1], [int(size) for size in sys.argv[2:]]
images = np.load(os.path.join(folder, 'images.npy'))
options = onnxruntime.SessionOptions()
options.log_severity_level = 3  # errors; it warns of constants that paddle2onnx leaves unused
for path in glob.glob(os.path.join(folder, '*.onnx')):
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    logits = {str(n): session.run(None, {'image': images[:n]})[0] for n in sizes}
    np.savez(path.removesuffix('.onnx') + '.npz', **logits)
