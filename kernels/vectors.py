"""Loops over rows of floats in LLVM IR, where numba's translation of a Python loop is slower: operations of vector
registers, of which products.py and depthwise.py build theirs, and elementwise loops.

All work on addresses, for which nothing is checked.
"""
import functools
import inspect

from kernels.compiled import numba

LANES, REGISTERS = 8, 16  # numbers in a vector register, and how many registers there are
# Made below, if there is numba:
scale_row = combine_rows = masked_row = scale_pairs = scale_even = scale_odd = masked_pairs = None
add_moments = add_products = None

if numba is not None:
    from llvmlite import binding, ir
    from numba.core import cgutils, types

    if binding.get_host_cpu_features().get('avx512f'):
        LANES, REGISTERS = 16, 32

    FLOAT, INTEGER = ir.FloatType(), ir.IntType(64)
    VECTOR = ir.VectorType(FLOAT, LANES)
    ZEROS = ir.Constant(VECTOR, [0.0] * LANES)

    FLOATS, DOUBLES, INTEGERS = [kind.as_pointer() for kind in (FLOAT, ir.DoubleType(), INTEGER)]

    def instructions(function):
        """The LLVM IR that function(builder, *arguments) writes, as a function for compiled code. Annotations of the
        arguments: a pointer, for which the caller gives an address; FLOAT; an integer has none."""
        kinds = [parameter.annotation for parameter in inspect.signature(function).parameters.values()][1:]

        @functools.wraps(function)
        def typed(context, *_):
            def generate(context, builder, signature, arguments):
                function(builder, *[builder.inttoptr(value, kind) if isinstance(kind, ir.PointerType) else value
                                    for value, kind in zip(arguments, kinds)])
                return context.get_dummy_value()
            return types.void(*[types.float32 if kind is FLOAT else types.int64 for kind in kinds]), generate
        return numba.extending.intrinsic(typed)

    def _vector_type(lanes):
        return ir.VectorType(FLOAT, lanes) if lanes > 1 else FLOAT

    def load(builder, pointer, position, lanes=LANES):
        """A vector of the numbers from pointer[position] on, or the number there."""
        place = builder.bitcast(builder.gep(pointer, [position]), _vector_type(lanes).as_pointer())
        return builder.load(place, align=4)

    def store(builder, value, pointer, position):
        """Write a vector, or a number, to pointer[position]."""
        builder.store(value, builder.bitcast(builder.gep(pointer, [position]), value.type.as_pointer()), align=4)

    def broadcast(builder, number, lanes=LANES):
        """A vector of equal numbers, or the number."""
        if lanes == 1:
            return number
        nothing, kind = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined), ir.IntType(32)
        return builder.shuffle_vector(builder.insert_element(nothing, number, kind(0)), nothing,
                                      ir.Constant(ir.VectorType(kind, lanes), [0] * lanes))

    def multiply_add(builder, a, b, c):
        kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f'llvm.fma.v{LANES}f32'), [a, b, c])

    def total_of(builder, vector):
        """The sum of a vector's numbers."""
        add = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOAT, [FLOAT, VECTOR]),
                                             f'llvm.vector.reduce.fadd.v{LANES}f32')
        return builder.call(add, [ir.Constant(FLOAT, -0.0), vector], fastmath=('reassoc',))

    def add_total(builder, target, vector):
        """Add the sum of a vector's numbers to target[0]."""
        builder.store(builder.fadd(builder.load(target), total_of(builder, vector)), target)

    def first_lanes(builder, vector, count):
        """A vector whose lanes from number `count` on are zeros."""
        kind = ir.IntType(32)
        numbers = ir.Constant(ir.VectorType(kind, LANES), list(range(LANES)))
        limit = broadcast(builder, builder.trunc(count, kind))
        return builder.select(builder.icmp_signed('<', numbers, limit), vector, ZEROS)

    def _keep_as_loop(builder, branch):
        """Keep LLVM from unrolling or vectorising the loop that a branch closes, which takes long and gains nothing."""
        module = builder.module
        hints = [module.add_metadata([ir.MetaDataString(module, 'llvm.loop.unroll.disable')]),
                 module.add_metadata([ir.MetaDataString(module, 'llvm.loop.vectorize.enable'),
                                      ir.Constant(ir.IntType(1), 0)])]
        loop = module.add_metadata([ir.Constant(INTEGER, len(module.metadata)), *hints])
        loop.operands = (loop, *loop.operands[1:])  # LLVM tells loops apart by a reference to themselves
        branch.set_metadata('llvm.loop', loop)

    def loop(builder, sums, limit, step, body, position=INTEGER(0)):
        """while position < limit: sums = body(position, sums); position += step. A body may contain a loop. Returns the
        position and the sums at the end."""
        before = builder.block
        test, start, after = [builder.append_basic_block(name) for name in ('test', 'loop', 'after')]
        builder.branch(test)
        builder.position_at_end(test)
        p, present = builder.phi(INTEGER), [builder.phi(value.type) for value in sums]
        builder.cbranch(builder.icmp_signed('<', p, limit), start, after)
        builder.position_at_end(start)
        results = body(p, present)
        following = builder.add(p, INTEGER(step))
        _keep_as_loop(builder, builder.branch(test))
        for phi, initial, value in zip([p, *present], [position, *sums], [following, *results]):
            phi.add_incoming(initial, before)
            phi.add_incoming(value, builder.block)
        builder.position_at_end(after)
        return p, present

    def for_each_vector(builder, size, body):
        """body(p, lanes) for p in range(size), in vectors of numbers first and in single ones at the end."""
        position = INTEGER(0)
        for lanes in (LANES, 4, 1):
            position, _ = loop(builder, [], builder.sub(size, INTEGER(lanes - 1)), lanes,
                               lambda p, _: body(p, lanes) or [], position)

    def _sums(builder, target, sources, size, mean, compute):
        """target[k] += sum_p compute(values of the sources at p, mean)[k] for k < 2, p < size. Four vectors at a time
        have sums of their own: none waits for another."""
        def sums_of(lanes, vectors):
            means = broadcast(builder, mean, lanes)

            def body(p, sums):
                results = []
                for v in range(vectors):
                    place = builder.add(p, INTEGER(v * lanes))
                    results += compute(*[load(builder, source, place, lanes) for source in sources], means)
                return [builder.fadd(total, value) for total, value in zip(sums, results)]
            return body
        position, sums = INTEGER(0), [ZEROS] * 8
        for lanes, vectors in ((LANES, 4), (LANES, 1), (1, 1)):
            if lanes == 1:
                sums = [total_of(builder, vector) for vector in sums]
            limit = builder.sub(size, INTEGER(vectors * lanes - 1))
            position, sums = loop(builder, sums, limit, vectors * lanes, sums_of(lanes, vectors), position)
            while len(sums) > 2:
                sums = [builder.fadd(one, other) for one, other in zip(sums, sums[len(sums) // 2:])]
        for k, total in enumerate(sums):
            place = builder.gep(target, [INTEGER(k)])
            builder.store(builder.fadd(builder.load(place), builder.fpext(total, ir.DoubleType())), place)

    @instructions
    def add_moments(builder, target: DOUBLES, source: FLOATS, size, mean: FLOAT):
        """target[0] += sum(source - mean), target[1] += sum((source - mean)**2)."""
        def compute(value, mean):
            rest = builder.fsub(value, mean)
            return [rest, builder.fmul(rest, rest)]
        _sums(builder, target, [source], size, mean, compute)

    @instructions
    def add_products(builder, target: DOUBLES, d: FLOATS, f: FLOATS, size, mean: FLOAT):
        """target[0] += sum(d), target[1] += sum(d * (f - mean))."""
        _sums(builder, target, [d, f], size, mean,
              lambda d, f, mean: [d, builder.fmul(d, builder.fsub(f, mean))])

    def _elementwise(builder, target, sources, size, scalars, compute):
        """target[p] = compute(*values of the sources at p, *scalars) for p < size, with vectors or, at the end of a
        row, numbers."""
        def body(p, lanes):
            values = [load(builder, source, p, lanes) for source in sources]
            store(builder, compute(*values, *[broadcast(builder, scalar, lanes) for scalar in scalars]), target, p)
        for_each_vector(builder, size, body)

    def _scaled(builder, value, scale, shift, floor):
        """max(floor, scale * value + shift), or no number."""
        value = builder.fadd(builder.fmul(value, scale), shift, flags=('contract',))
        return builder.select(builder.fcmp_unordered('>', value, floor), value, floor)

    @instructions
    def scale_row(builder, target: FLOATS, source: FLOATS, size, scale: FLOAT, shift: FLOAT, floor: FLOAT):
        """target = max(floor, scale * source + shift)."""
        _elementwise(builder, target, [source], size, [scale, shift, floor], functools.partial(_scaled, builder))

    @instructions
    def combine_rows(builder, target: FLOATS, one: FLOATS, other: FLOATS, size, a: FLOAT, b: FLOAT, c: FLOAT):
        """target = a * one + b * other + c."""
        def compute(one, other, a, b, c):
            first = builder.fadd(builder.fmul(other, b), c, flags=('contract',))
            return builder.fadd(builder.fmul(one, a), first, flags=('contract',))
        _elementwise(builder, target, [one, other], size, [a, b, c], compute)

    def _where(builder, value, lowest, given):
        """given where value > lowest, else 0."""
        return builder.select(builder.fcmp_ordered('>', value, lowest), given, ir.Constant(given.type, None)
                              if given.type != FLOAT else FLOAT(0.0))

    @instructions
    def masked_row(builder, target: FLOATS, source: FLOATS, values: FLOATS, size, lowest: FLOAT, add: FLOAT):
        """target = source where values > lowest, else 0, plus what was there before if add > 0."""
        def compute(given, value, before, lowest, add, zero):
            return builder.fadd(_where(builder, add, zero, before), _where(builder, value, lowest, given))
        _elementwise(builder, target, [source, values, target], size, [lowest, add, FLOAT(0.0)], compute)

    def _choose(builder, one, other, numbers):
        """A vector of those elements of two, or the one of two numbers."""
        if one.type == FLOAT:
            return (one, other)[numbers[0]]
        return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers))

    def _scale_pairs(kept):
        @instructions
        def scale_pairs(builder, even: FLOATS, odd: FLOATS, source: FLOATS, size, scale: FLOAT, shift: FLOAT,
                        floor: FLOAT):
            """even[p], odd[p] = max(floor, scale * source[2 * p] + shift) and that of source[2 * p + 1], for p < size;
            of the two only those kept: 0 and 1."""
            def body(p, lanes):
                first = builder.mul(p, INTEGER(2))
                values = [load(builder, source, builder.add(first, INTEGER(k)), lanes) for k in (0, lanes)]
                for k in kept:
                    chosen = _choose(builder, *values, list(range(k, 2 * lanes, 2)))
                    numbers = [broadcast(builder, scalar, lanes) for scalar in (scale, shift, floor)]
                    store(builder, _scaled(builder, chosen, *numbers), (even, odd)[k], p)
            for_each_vector(builder, size, body)
        return scale_pairs

    scale_pairs, scale_even, scale_odd = _scale_pairs((0, 1)), _scale_pairs((0,)), _scale_pairs((1,))

    @instructions
    def masked_pairs(builder, target: FLOATS, even: FLOATS, odd: FLOATS, even_values: FLOATS, odd_values: FLOATS, size,
                     lowest_even: FLOAT, lowest_odd: FLOAT, add: FLOAT):
        """target[2 * p] = even[p] where even_values[p] > lowest_even, else 0, and target[2 * p + 1] likewise, plus what
        was there before if add > 0."""
        def body(p, lanes):
            given = [_where(builder, load(builder, values, p, lanes), broadcast(builder, lowest, lanes),
                            load(builder, source, p, lanes))
                     for source, values, lowest in ((even, even_values, lowest_even), (odd, odd_values, lowest_odd))]
            for k in (0, lanes):
                position = builder.add(builder.mul(p, INTEGER(2)), INTEGER(k))
                chosen = _choose(builder, *given, [(k + i) // 2 + (k + i) % 2 * lanes for i in range(lanes)])
                before = _where(builder, broadcast(builder, add, lanes), broadcast(builder, FLOAT(0.0), lanes),
                                load(builder, target, position, lanes))
                store(builder, builder.fadd(before, chosen), target, position)
        for_each_vector(builder, size, body)
