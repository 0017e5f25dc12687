"""Products of a few rows with one matrix, formed over and over: what a recurrent network does at every step.

A library of linear algebra copies the matrix into the order in which the processor reads it best, each time that it is
asked for a product. With many rows that hardly matters; with the ten or twenty that a core has of a batch the copying
takes as long as the product. Here `pack` copies it once for all steps, into panels of `WIDTH` columns, and `multiply`
goes through them. Its innermost loop, `_tile`, keeps the sums of a few rows and one panel in registers while all that
they are sums of goes by (Goto & van de Geijn 2008; Van Zee & van de Geijn 2015, the "micro-kernel" of BLIS).
"""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from shared.cpu import compiled, on_cores
from shared.memory import empty

VECTOR = 8  # numbers in one, which is a register of AVX2 in float32; LLVM makes several of it on other processors
WIDTH = 2 * VECTOR  # columns in a panel, whose row is a cache line of float32
ROWS = 6  # times two vectors of sums, two of the panel and one of the rows: 15 of 16 registers
TOGETHER = 4  # panels at a time for one row, half for two: with fewer sums each would wait for its last addition


def pack(W: np.ndarray) -> np.ndarray:
    """The columns of a matrix (depth, columns) in panels (panels, depth, WIDTH), a multiple of TOGETHER of them.

    Behind the last column there are zeros.
    """
    panels = empty_panels(W)
    on_cores(lambda some: fill(W, panels, some.start, some.stop), len(panels), least=TOGETHER)
    return panels


def empty_panels(W: np.ndarray) -> np.ndarray:
    """As `pack`, without the numbers."""
    depth, columns = W.shape
    return empty((-(-columns // (TOGETHER * WIDTH)) * TOGETHER, depth, WIDTH), W.dtype)


@compiled
def part_of(panels, part, parts):
    """The first panel of a part, a multiple of TOGETHER, and the one behind its last."""
    groups = len(panels) // TOGETHER
    return groups * part // parts * TOGETHER, groups * (part + 1) // parts * TOGETHER


@compiled
def fill(W, panels, begin, end):
    """Copies the columns of the panels from `begin` to `end`."""
    depth, columns = W.shape
    for panel in range(begin, end):
        first = panel * WIDTH
        if first + WIDTH <= columns:
            for k in range(depth):
                for column in range(WIDTH):
                    panels[panel, k, column] = W[k, first + column]
        else:
            panels[panel] = 0
            for k in range(depth):
                for column in range(columns - first):
                    panels[panel, k, column] = W[k, first + column]


@compiled
def multiply(x, panels, begin, end, out):
    """Writes x W into `out`, what comes behind the columns of W is of no meaning.

    Args:
        x: (rows, depth), the numbers of a row next to each other. panels: `pack(W)`.
        begin, end: which panels are multiplied, from a multiple of TOGETHER on.
        out: (rows, len(panels) * WIDTH).
    """
    rows = len(x)
    if rows == 1:
        for panel in range(begin, end, TOGETHER):
            _tile(1, x, 0, panels, panel, out)
        return
    if rows == 2:
        for panel in range(begin, end, TOGETHER // 2):
            _tile(2, x, 0, panels, panel, out)
        return
    blocks = (rows + ROWS - 1) // ROWS
    for panel in range(begin, end):
        for block in range(blocks):  # of 3 to 6 rows
            row = rows * block // blocks
            height = rows * (block + 1) // blocks - row
            if height == 3:
                _tile(3, x, row, panels, panel, out)
            elif height == 4:
                _tile(4, x, row, panels, panel, out)
            elif height == 5:
                _tile(5, x, row, panels, panel, out)
            else:
                _tile(6, x, row, panels, panel, out)


@intrinsic(prefer_literal=True)
def _tile(typing, height, x, row, panels, panel, out):
    """The product of `height` rows from `row` on, a literal, with a panel; of one or two rows with TOGETHER / height
    panels from that one on.

    In the terms of LLVM: those of Numba have no word for what has to stay in a register.
    """
    rows, number = height.literal_value, x.dtype
    together = max(1, TOGETHER // rows) if rows < 3 else 1

    def generate(context, builder, signature, arguments):
        _, x, row, panels, panel, out = arguments
        of_number, whole = context.get_value_type(number), ir.IntType(64)
        vector = ir.VectorType(of_number, VECTOR)

        def pointer(position, array, index):
            """To the first number of what has this index along the first axis."""
            array = context.make_array(signature.args[position])(context, builder, array)
            offset = builder.mul(index, builder.extract_value(array.strides, 0))
            return builder.inttoptr(builder.add(builder.ptrtoint(array.data, whole), offset), of_number.as_pointer())

        def vector_at(base, offset):
            return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

        def repeated(number):
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.IntType(32)(0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), [0] * VECTOR)
            return builder.shuffle_vector(first, first, zeros)

        of_rows = [pointer(1, x, builder.add(row, whole(i))) for i in range(rows)]
        of_panels = [pointer(3, panels, builder.add(panel, whole(i))) for i in range(together)]
        of_sums = [pointer(5, out, builder.add(row, whole(i))) for i in range(rows)]
        depth = builder.extract_value(context.make_array(signature.args[3])(context, builder, panels).shape, 1)
        before, loop, behind = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)

        builder.position_at_end(loop)
        k = builder.phi(whole)
        sums = [[builder.phi(vector) for _ in range(together * WIDTH // VECTOR)] for _ in range(rows)]
        begin = builder.mul(k, whole(WIDTH))
        weights = [
            builder.load(vector_at(base, builder.add(begin, whole(offset))), align=number.bitwidth // 8)
            for base in of_panels
            for offset in range(0, WIDTH, VECTOR)
        ]
        factors = [repeated(builder.load(builder.gep(base, [k]))) for base in of_rows]
        new_sums = [
            [
                builder.fadd(old, builder.fmul(factor, weight, flags=["contract"]), flags=["contract"])
                for old, weight in zip(of_row, weights, strict=True)
            ]
            for of_row, factor in zip(sums, factors, strict=True)
        ]
        new_k = builder.add(k, whole(1))
        k.add_incoming(whole(0), before)
        k.add_incoming(new_k, loop)
        for of_row, new_of_row in zip(sums, new_sums, strict=True):
            for old, new in zip(of_row, new_of_row, strict=True):
                old.add_incoming(ir.Constant(vector, [0.0] * VECTOR), before)
                old.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", new_k, depth), loop, behind)

        builder.position_at_end(behind)
        first = builder.mul(panel, whole(WIDTH))
        for base, of_row in zip(of_sums, new_sums, strict=True):
            for i, one in enumerate(of_row):
                target = vector_at(base, builder.add(first, whole(i * VECTOR)))
                builder.store(one, target, align=number.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(height, x, row, panels, panel, out), generate
