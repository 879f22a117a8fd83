"""Loops over rows of floats in LLVM IR, where numba's translation of a Python loop is slower: operations of vector
registers, of which products.py and depthwise.py build theirs, and elementwise loops.

All work on addresses, for which nothing is checked.
"""
from kernels.compiled import numba

LANES, REGISTERS = 8, 16  # numbers in a vector register, and how many registers there are
# Made below, if there is numba:
scale_row = combine_rows = masked_row = add_masked_row = None
scale_pairs = scale_even = scale_odd = masked_pairs = add_masked_pairs = None
add_sum = add_moments = add_products = None

if numba is not None:
    from llvmlite import binding, ir
    from numba.core import types

    if binding.get_host_cpu_features().get('avx512f'):
        LANES, REGISTERS = 16, 32

    FLOAT, INTEGER = ir.FloatType(), ir.IntType(64)
    VECTOR = ir.VectorType(FLOAT, LANES)
    ZEROS = ir.Constant(VECTOR, [0.0] * LANES)

    def pointer_of(builder, address, kind=FLOAT):
        return builder.inttoptr(address, kind.as_pointer())

    def _kind(lanes):
        return ir.VectorType(FLOAT, lanes) if lanes > 1 else FLOAT

    def load(builder, pointer, position, lanes=LANES):
        """A vector of the numbers from pointer[position] on, or the number there."""
        place = builder.bitcast(builder.gep(pointer, [position]), _kind(lanes).as_pointer())
        return builder.load(place, align=4)

    def store(builder, value, pointer, position):
        """Write a vector, or a number, to pointer[position]."""
        builder.store(value, builder.bitcast(builder.gep(pointer, [position]), value.type.as_pointer()), align=4)

    def broadcast(builder, number, kind=FLOAT):
        return _filled(builder, ir.VectorType(kind, LANES), number, LANES)

    def multiply_add(builder, a, b, c):
        kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
        name = f'llvm.fma.v{LANES}f32'
        return builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), [a, b, c])

    def total_of(builder, vector):
        """The sum of a vector's numbers."""
        name = f'llvm.vector.reduce.fadd.v{LANES}f32'
        add = builder.module.globals.get(name) or ir.Function(builder.module,
                                                              ir.FunctionType(FLOAT, [FLOAT, VECTOR]), name)
        return builder.call(add, [ir.Constant(FLOAT, -0.0), vector], fastmath=('reassoc',))

    def add_total(builder, target, vector):
        """Add the sum of a vector's numbers to target[0]."""
        builder.store(builder.fadd(builder.load(target), total_of(builder, vector)), target)

    def first_lanes(builder, vector, count):
        """A vector whose lanes from number `count` on are zeros."""
        kind = ir.IntType(32)
        numbers = ir.Constant(ir.VectorType(kind, LANES), list(range(LANES)))
        limit = broadcast(builder, builder.trunc(count, kind), kind)
        return builder.select(builder.icmp_signed('<', numbers, limit), vector, ZEROS)

    def _as_it_is(builder, branch):
        """Keep LLVM from unrolling or vectorising the loop that a branch closes, which takes long and gains nothing."""
        module = builder.module
        hints = [module.add_metadata([ir.MetaDataString(module, 'llvm.loop.unroll.disable')]),
                 module.add_metadata([ir.MetaDataString(module, 'llvm.loop.vectorize.enable'),
                                      ir.Constant(ir.IntType(1), 0)])]
        loop = module.add_metadata([ir.Constant(INTEGER, len(module.metadata)), *hints])
        loop.operands = (loop, *loop.operands[1:])  # LLVM tells loops apart by a reference to themselves
        branch.set_metadata('llvm.loop', loop)

    def loop(builder, sums, count, step, body):
        """for i in range(0, count, step): sums = body(i, sums), at least once, with a list of vectors -> sums. A body
        may contain a loop."""
        before, start = builder.block, builder.append_basic_block('loop')
        builder.branch(start)
        builder.position_at_end(start)
        i, present = builder.phi(INTEGER), [builder.phi(VECTOR) for _ in sums]
        results = body(i, present)
        following = builder.add(i, INTEGER(step))
        for phi, initial, value in zip([i, *present], [INTEGER(0), *sums], [following, *results]):
            phi.add_incoming(initial, before)
            phi.add_incoming(value, builder.block)
        after = builder.append_basic_block('after')
        _as_it_is(builder, builder.cbranch(builder.icmp_signed('<', following, count), start, after))
        builder.position_at_end(after)
        return results

    def along(builder, size, body):
        """body(p, lanes) for p in range(size), in vectors of numbers first and in single ones at the end."""
        position = INTEGER(0)
        for lanes in (LANES, 4, 1):
            position, _ = _while_there_are(builder, position, size, lanes, [], lambda p, _: body(p, lanes) or [])

    def _while_there_are(builder, position, size, step, sums, body):
        """while position + step <= size: sums = body(position, sums); position += step. Returns both."""
        before = builder.block
        test, start, after = [builder.append_basic_block(name) for name in ('test', 'loop', 'after')]
        builder.branch(test)
        builder.position_at_end(test)
        p, present = builder.phi(INTEGER), [builder.phi(value.type) for value in sums]
        following = builder.add(p, INTEGER(step))
        builder.cbranch(builder.icmp_signed('<=', following, size), start, after)
        builder.position_at_end(start)
        results = body(p, present)
        _as_it_is(builder, builder.branch(test))
        for phi, initial, value in zip([p, *present], [position, *sums], [following, *results]):
            phi.add_incoming(initial, before)
            phi.add_incoming(value, builder.block)
        builder.position_at_end(after)
        return p, present

    def _sums(sources, scalars, count, compute):
        """target[k] += sum_p compute(builder, values of the sources at p, scalars)[k] for k < count, p < size; the
        target has double precision. Four vectors at a time have sums of their own: none waits for another.

        Arguments: addresses of the target and of the sources, size, scalars.
        """
        def generate(context, builder, signature, arguments):
            target = pointer_of(builder, arguments[0], ir.DoubleType())
            pointers = [pointer_of(builder, address) for address in arguments[1:1 + sources]]

            def sums_of(lanes, vectors):
                numbers = [_filled(builder, _kind(lanes), scalar, lanes) for scalar in arguments[2 + sources:]]

                def body(p, sums):
                    results = []
                    for v in range(vectors):
                        place = builder.add(p, INTEGER(v * lanes))
                        values = [load(builder, pointer, place, lanes) for pointer in pointers]
                        results += compute(builder, values, numbers)
                    return [builder.fadd(total, value) for total, value in zip(sums, results)]
                return body
            position, sums = INTEGER(0), [ZEROS] * (4 * count)
            for vectors in (4, 1):
                position, sums = _while_there_are(builder, position, arguments[1 + sources], vectors * LANES, sums,
                                                  sums_of(LANES, vectors))
                while len(sums) > count:
                    sums = [builder.fadd(one, other) for one, other in zip(sums, sums[len(sums) // 2:])]
            totals = [total_of(builder, vector) for vector in sums]
            _, totals = _while_there_are(builder, position, arguments[1 + sources], 1, totals, sums_of(1, 1))
            for k, total in enumerate(totals):
                place = builder.gep(target, [INTEGER(k)])
                builder.store(builder.fadd(builder.load(place), builder.fpext(total, ir.DoubleType())), place)
            return context.get_dummy_value()
        return types.void(*[types.int64] * (2 + sources), *[types.float32] * scalars), generate

    @numba.extending.intrinsic
    def add_sum(context, target, source, size):
        """target[0] += sum(source): addresses, of double and of single precision, and the number of elements."""
        return _sums(1, 0, 1, lambda builder, values, scalars: values)

    @numba.extending.intrinsic
    def add_moments(context, target, source, size, mean):
        """target[0] += sum(source - mean), target[1] += sum((source - mean)**2)."""
        def compute(builder, values, scalars):
            rest = builder.fsub(values[0], scalars[0])
            return [rest, builder.fmul(rest, rest)]
        return _sums(1, 1, 2, compute)

    @numba.extending.intrinsic
    def add_products(context, target, d, f, size, mean):
        """target[0] += sum(d), target[1] += sum(d * (f - mean))."""
        def compute(builder, values, scalars):
            return [values[0], builder.fmul(values[0], builder.fsub(values[1], scalars[0]))]
        return _sums(2, 1, 2, compute)

    def _elementwise(sources, scalars, compute):
        """target[p] = compute(builder, values of the sources at p, scalars) for p < size, with vectors or, at the end
        of a row, numbers as values and scalars.

        Arguments: addresses of the target and of the sources, size, scalars.
        """
        def generate(context, builder, signature, arguments):
            pointers = [pointer_of(builder, address) for address in arguments[:1 + sources]]

            def body(p, lanes):
                values = [load(builder, pointer, p, lanes) for pointer in pointers[1:]]
                numbers = [_filled(builder, _kind(lanes), scalar, lanes) for scalar in arguments[2 + sources:]]
                store(builder, compute(builder, values, numbers), pointers[0], p)
            along(builder, arguments[1 + sources], body)
            return context.get_dummy_value()
        signature = types.void(*[types.int64] * (2 + sources), *[types.float32] * scalars)
        return signature, generate

    def _filled(builder, kind, number, lanes):
        if lanes == 1:
            return number
        nothing = ir.Constant(kind, ir.Undefined)
        return builder.shuffle_vector(builder.insert_element(nothing, number, ir.IntType(32)(0)), nothing,
                                      ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))

    def _above(builder, value, limit, otherwise):
        """value where value > limit, or is no number, else otherwise."""
        return builder.select(builder.fcmp_unordered('>', value, limit), value, otherwise)

    def _scaled(builder, values, scalars):
        value = builder.fadd(builder.fmul(values[0], scalars[0]), scalars[1], flags=('contract',))
        return _above(builder, value, scalars[2], scalars[2])

    @numba.extending.intrinsic
    def scale_row(context, target, source, size, scale, shift, floor):
        """target = max(floor, scale * source + shift); addresses, the number of elements, three numbers."""
        return _elementwise(1, 3, _scaled)

    @numba.extending.intrinsic
    def combine_rows(context, target, one, other, size, a, b, c):
        """target = a * one + b * other + c."""
        def compute(builder, values, scalars):
            first = builder.fadd(builder.fmul(values[1], scalars[1]), scalars[2], flags=('contract',))
            return builder.fadd(builder.fmul(values[0], scalars[0]), first, flags=('contract',))
        return _elementwise(2, 3, compute)

    def _masked(builder, values, scalars):
        return builder.select(builder.fcmp_ordered('>', values[1], scalars[0]), values[0],
                              ir.Constant(values[0].type, None if values[0].type != FLOAT else 0.0))

    @numba.extending.intrinsic
    def masked_row(context, target, source, values, size, lowest):
        """target = source where values > lowest, else 0."""
        return _elementwise(2, 1, _masked)

    @numba.extending.intrinsic
    def add_masked_row(context, target, source, values, before, size, lowest):
        """target = before + source where values > lowest, else before."""
        return _elementwise(3, 1, lambda builder, values, scalars: builder.fadd(values[2],
                                                                               _masked(builder, values, scalars)))

    def _choose(builder, one, other, numbers):
        """A vector of those elements of two, or the one of two numbers."""
        if one.type == FLOAT:
            return (one, other)[numbers[0]]
        return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers))

    def _scale_pairs(kept):
        @numba.extending.intrinsic
        def scale_pairs(context, even, odd, source, size, scale, shift, floor):
            """even[p], odd[p] = max(floor, scale * source[2 * p] + shift) and that of source[2 * p + 1], for p < size;
            of the two only those kept: 0 and 1."""
            def generate(context, builder, signature, arguments):
                even, odd, source = [pointer_of(builder, address) for address in arguments[:3]]

                def body(p, lanes):
                    first = builder.mul(p, INTEGER(2))
                    values = [load(builder, source, builder.add(first, INTEGER(k)), lanes) for k in (0, lanes)]
                    numbers = [_filled(builder, _kind(lanes), scalar, lanes) for scalar in arguments[4:]]
                    for k in kept:
                        chosen = _choose(builder, *values, list(range(k, 2 * lanes, 2)))
                        store(builder, _scaled(builder, [chosen], numbers), (even, odd)[k], p)
                along(builder, arguments[3], body)
                return context.get_dummy_value()
            return types.void(*[types.int64] * 4, *[types.float32] * 3), generate
        return scale_pairs

    scale_pairs, scale_even, scale_odd = _scale_pairs((0, 1)), _scale_pairs((0,)), _scale_pairs((1,))

    def _masked_pairs(add):
        @numba.extending.intrinsic
        def masked_pairs(context, target, even, odd, even_values, odd_values, size, lowest_even, lowest_odd):
            """target[2 * p] (+)= even[p] where even_values[p] > lowest_even, else 0, and target[2 * p + 1] likewise."""
            def generate(context, builder, signature, arguments):
                target, *pointers = [pointer_of(builder, address) for address in arguments[:5]]

                def body(p, lanes):
                    values = [load(builder, pointer, p, lanes) for pointer in pointers]
                    limits = [_filled(builder, _kind(lanes), lowest, lanes) for lowest in arguments[6:]]
                    given = [_masked(builder, values[k::2], limits[k:]) for k in (0, 1)]
                    for k in (0, lanes):
                        position = builder.add(builder.mul(p, INTEGER(2)), INTEGER(k))
                        chosen = _choose(builder, *given, [(k + i) // 2 + (k + i) % 2 * lanes for i in range(lanes)])
                        if add:
                            chosen = builder.fadd(load(builder, target, position, lanes), chosen)
                        store(builder, chosen, target, position)
                along(builder, arguments[5], body)
                return context.get_dummy_value()
            return types.void(*[types.int64] * 6, *[types.float32] * 2), generate
        return masked_pairs

    masked_pairs, add_masked_pairs = _masked_pairs(False), _masked_pairs(True)
