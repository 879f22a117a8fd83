"""Loops over images, compiled for the CPU; each file needs only those above it:

    compiled.py      compiles functions with numba
    threads.py       runs compiled functions on all cores
    vectors.py       operations of vector registers in LLVM IR, and loops over rows of floats
    products.py      matrix products whose factors lie in memory as rows of pixels
    windows.py       how images lie in memory while they are convolved or pooled: start here to read the loops
    images.py        copies between tensors and that arrangement, sums over channels, max pooling
    depthwise.py     a depthwise convolution of one channel and its gradients
    operation.py     how loops become an operation of Paddle with a gradient

    units.py         the convolutions, batch norms and poolings that a block is made of
    records.py       arrays of records that compiled code can read
    plans.py         what is to be computed for a block, as such records: start here to read the blocks
    call.py          what is new in each call; where values lie
    nodes.py         sums of operations, and what their gradients give to the operations
    forward.py       computes a plan
    weights.py       weights as the backward pass reads them, and the sums of their gradients
    backward.py      the gradients
    blocks.py        all of it as one operation: a chain of convolutions, a mixed operation, a cell
"""
