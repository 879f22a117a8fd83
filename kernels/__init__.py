"""Loops over images, compiled for the CPU; each file needs only those above it:

    compiled.py      compiles functions with numba
    threads.py       runs compiled functions on all cores
    vectors.py       operations of vector registers in LLVM IR, and loops over rows of floats
    products.py      matrix products whose factors lie in memory as rows of pixels
    windows.py       how images lie in memory while they are convolved or pooled: start here to read the loops
    images.py        copies between tensors and that arrangement, sums over channels, max pooling
    depthwise.py     a depthwise convolution of one channel and its gradients
    batch_norm.py    what a batch norm does between two loops over images
    operation.py     how loops become an operation of Paddle with a gradient

    convolutions.py  single depthwise and pointwise convolutions
    channels.py      tensors cut or joined along the channels
    nodes.py         a node of a cell with partial channels
    scaling.py       images times a number for each, for drop path
    blocks.py        chains of ReLU, convolution and batch norm, mixed operations, poolings: blocks.py says what is
                     computed, units.py and unit_pass.py prepare it, block_loops.py and pool_loops.py are the loops
    edges.py         all edges that leave a state of a cell: edge_sizes.py, edge_loops.py and edge_pools.py likewise
"""
