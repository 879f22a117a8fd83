"""accelerate(network): compute a network faster, attached from outside; its definition knows nothing of it.

Two things are replaced, each by an attribute `forward` of the one layer concerned, so that the layer's class stays as
it is:

    single layers   convolutions with what surrounds them, poolings, FactorizedReduce, WeightedSum (nas/layers.py)
    cells           of model_search.py and model.py, as a whole (nas/cells.py); where that does not apply, a Cell of
                    model_search.py by source state: all edges that leave a state at once (nas/fused.py)

What is computed must be what the network's author wrote. So a cell is computed together only while its code is the
code that nas/cells.py and nas/fused.py reproduce, and that is checked at every forward pass: classes and their
`forward`, `mix` and `_edge`, attributes of that name, hooks, the identity of all operations and parameters, the
settings of convolutions, poolings and batch norms. An operation that is not known or was changed runs as it is written
beside the others; a cell that was changed runs as it is written altogether. The log says so once, by name.
"""
import types

import paddle
import paddle.nn as nn

from genotypes import edge_number
from kernels import compiled
from nas import cells, fused
from nas.changes import PADDLE_FORWARDS, Record, has_hooks, is_known_code
from nas.layers import attach, is_ours, is_plain_reduction
from nas.precompile import precompile
from operations import DropPath, FactorizedReduce, WeightedSum
from runtime.log import logger
from runtime.parallel import cpu_threads

# The classes whose `mix` the edges of each kind of cell may have; Edge is that of examples/nasbench201.py.
MIXES = {'Cell': ['MixedOp'], 'GraphCell': ['MixedOp', 'Edge']}


def accelerate(network, quiet=False):
    """Speed up a network in place and return it. Calling it again after a change of the network takes in what is new.

    network: any paddle.nn.Layer. On a CPU in single precision compiled loops are used; elsewhere fewer, larger
    operations of Paddle. The numbers are those of the plain network up to rounding. The log says what is accelerated
    and what is not; quiet: without the lines that count cells and layers and that say that numba compiles.
    """
    search_cells = trained_cells = layers = 0  # that are new
    for layer in network.sublayers(include_self=True):
        if 'forward' in vars(layer):
            continue
        of_search = _looks_like_a_cell(layer)
        if of_search or compiled.numba is not None and _looks_like_a_trained_cell(layer):
            layer.forward = types.MethodType(_cell_forward, layer)
            search_cells, trained_cells = search_cells + of_search, trained_cells + (not of_search)
        else:
            layers += attach(layer)
    logged, cell_count, whole = set(), 0, 0
    for name, layer in network.named_sublayers(include_self=True):
        if _looks_like_a_cell(layer):
            layer._acceleration = CellAcceleration(name, logged)
        elif _looks_like_a_trained_cell(layer) and compiled.numba is not None:
            layer._acceleration = TrainedCellAcceleration()
        else:
            continue
        layer._acceleration.update(layer)
        cell_count, whole = cell_count + 1, whole + layer._acceleration.is_whole()
    if (search_cells or trained_cells or layers) and not quiet:
        logger.info('acceleration: %s%d single layers; %s',
                    f'{whole} of {cell_count} cells as a whole, ' if cell_count else '', layers,
                    compiled.why_not if compiled.numba is None
                    else f'compiled loops on {cpu_threads()} cores where the device is a CPU and the precision float32')
        if compiled.numba is not None:
            compiled.on_first_compilation(_log_compilation)
    if search_cells:  # other networks may need the forward pass only
        precompile()
    return network


def _log_compilation(folder):
    logger.info('acceleration: numba compiles the loops that this job needs, which takes 10 to 40 seconds on two free '
                'cores; later runs find them in %s', folder)


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------


def _looks_like_a_cell(layer):
    """Whether a layer has the parts of model_search.Cell or GraphCell. What it computes is looked at later."""
    of_cell = all(hasattr(layer, name) for name in ('preprocess0', 'preprocess1', '_steps', '_multiplier'))
    edges = getattr(layer, '_ops' if of_cell else 'edges', None)
    if not isinstance(edges, nn.LayerList) or not len(edges) or not (of_cell or hasattr(layer, 'graph')):
        return False
    return all(isinstance(getattr(edge, '_ops', None), nn.LayerList) and hasattr(edge, 'method') for edge in edges)


def _looks_like_a_trained_cell(layer):
    """Whether a layer has the parts of model.Cell."""
    parts = ('preprocess0', 'preprocess1', 'drop_path', '_concat', '_indices', '_is_edge')
    return isinstance(getattr(layer, '_ops', None), nn.LayerList) and all(hasattr(layer, name) for name in parts)


def _cell_forward(self, *args, **kwargs):
    acceleration, out = vars(self).get('_acceleration'), None
    if acceleration is not None and paddle.in_dynamic_mode():
        out = acceleration(self, *args, **kwargs)
    return type(self).forward(self, *args, **kwargs) if out is None else out


class TrainedCellAcceleration:
    """Computes a cell of model.py as a whole, if it is what its block was made of."""

    def __init__(self):
        self.record = None

    def __deepcopy__(self, memo):
        return TrainedCellAcceleration()  # the copy looks at the copied cell

    def __call__(self, cell, *inputs, **more):
        """The output, or None to run the cell as it is written."""
        if self.record is None or not self.record.is_current():
            self.update(cell)
        return None if self.cell is None or len(inputs) != 3 or more else self.cell(cell, *inputs)

    def update(self, cell):
        """Look at the cell as it is now."""
        record = Record(cell.sublayers(include_self=True))
        known = (all(is_known_code(type(cell), name, 'TrainedCell') for name in ('forward', '_edge'))
                 and '_edge' not in vars(cell) and type(cell.drop_path) is DropPath
                 and not has_hooks(cell.drop_path)
                 and all(is_known_code(DropPath, name) for name in ('forward', 'factors'))
                 and not {'forward', 'factors'} & set(vars(cell.drop_path)))
        self.cell = cells.TrainedCell(cell) if known else None
        self.record = record  # last, for other threads

    def is_whole(self):
        """Whether the cell is computed as a whole, where the device and the precision allow it."""
        return self.cell is not None and self.cell.block is not None


class CellAcceleration:
    """Decides for one cell of the supernet, at every forward pass, whether it is computed as a whole, by source state,
    or as it is written.

    name: of the cell, for the log. logged: the lines that were logged for the network, shared by its cells.
    """

    def __init__(self, name, logged):
        self.name, self.logged = name, logged
        self.edges = self.whole = self.record = None

    def __deepcopy__(self, memo):
        return CellAcceleration(self.name, self.logged)  # the copy looks at the copied cell

    def __call__(self, cell, *args, **kwargs):
        """The output, or None to run the cell as it is written."""
        if self.record is None or not self.record.is_current():
            self.update(cell)
        inputs = 1 if cells.is_graph(cell) else cells.INPUTS
        if len(args) <= inputs:
            return None
        out, more = None, dict(zip(('weights', 'edge_weights', 'active'), args[inputs:]), **kwargs)
        if (not isinstance(more.get('weights'), paddle.Tensor)
                or not isinstance(more.get('edge_weights'), (paddle.Tensor, type(None)))):
            return None  # lists of rows
        if self.whole is not None and (self.covers_active or more.get('active') is None):
            out = self.whole(list(args[:inputs]), **more)
        if out is None and self.edges is not None and self._one_mode() and not _normalises_single_values(cell, args[1]):
            out = self._by_state(cell, *args, **kwargs)
        return out

    def is_whole(self):
        """Whether the cell is computed as a whole, where the device and the precision allow it."""
        return self.whole is not None and self.whole.block is not None

    def _by_state(self, cell, s0, s1, *weights, **more):
        for text in self.unknown:
            self._log_once(text)
        nodes = self.edges.nodes(cell.preprocess0(s0), cell.preprocess1(s1), *weights, **more)
        return paddle.concat(nodes[-cell._multiplier:], axis=1)

    def _one_mode(self):
        """Whether all batch norms that are computed together are in one mode, training or evaluation."""
        modes = {norm.training for norm in self.norms}
        if len(modes) > 1:
            self._log_once(f'{self.name}: its batch norms are partly in evaluation mode: run as written')
        return len(modes) <= 1

    def update(self, cell):
        """Look at the cell as it is now."""
        record = Record(cell.sublayers(include_self=True))
        reason = _reason_against(cell)
        self.whole = self.edges = None
        # The edges of NAS-Bench-201 add more than the operations that are drawn.
        self.covers_active = all(is_known_code(type(mixed), 'mix', 'MixedOp')
                                 for mixed in cells.mixed_operations_of(cell))
        if reason:
            self._log_once(f'{reason}: run as written')
        else:
            self.whole = cells.SearchCell(cell) if compiled.numba is not None else None
            if not cells.is_graph(cell):
                self._find_edges(cell)
            elif self.whole is not None:
                for column, kind in self.whole.unknown.items():
                    self._log_once(f'{_names_of_operations(cell)[column]} ({kind}) is not known: cells that contain it '
                                   'are computed edge by edge')
        self.record = record  # last, for other threads

    def _find_edges(self, cell):
        """Look at what can be computed by source state."""
        unknown = {}
        names = _names_of_operations(cell)

        def is_known(op):
            why = _reason_against_operation(op)
            if why:
                unknown[id(op)] = why
            return not why
        fused_edges, self.unknown = fused.FusedCell(list(cell._ops), cell._steps, is_known), []
        if not any(any(edges.norm_places) for edges in fused_edges.outgoing):
            return  # nothing that is computed faster together
        self.norms = [norm for op in _operations(cell) if id(op) not in unknown for norm in op.sublayers()
                      if isinstance(norm, nn.BatchNorm2D)]
        for column in sorted({column for edges in fused_edges.outgoing for _, column, _ in edges.others}):
            why = sorted({unknown.get(id(op), 'differs from edge to edge') for edges in fused_edges.outgoing
                          for _, other, op in edges.others if other == column})
            states = sum(any(other == column for _, other, _ in edges.others) for edges in fused_edges.outgoing)
            name = names[column] if column < len(names) else column
            self.unknown.append(f'{name} {", ".join(why)}: on the edges of {states} states it '
                                'runs as written beside the other operations')
        self.edges = fused_edges

    def _log_once(self, text):
        if text not in self.logged:
            self.logged.add(text)
            logger.info('acceleration: %s', text)


def _normalises_single_values(cell, s1):
    """Whether a batch norm of the cell sees one value per channel: Paddle then returns its input, which a weight must
    still scale."""
    n, _, h, w = s1.shape
    halved = any(mixed.mp is not None for mixed in cell._ops)
    return n * (-(-h // 2) * -(-w // 2) if halved else h * w) <= 1


def _names_of_operations(cell):
    """Of the operations on an edge, by column."""
    return list(cells.mixed_operations_of(cell)[0].method.primitives) + ['auxiliary skip connection']


def _operations(cell):
    return [op for mixed in cell._ops for op in [*mixed._ops, mixed.auxiliary_op] if op is not None]


def _reason_against(cell):
    """Why a cell must run as it is written, or None."""
    mixed_operations = cells.mixed_operations_of(cell)
    role = 'GraphCell' if cells.is_graph(cell) else 'Cell'
    functions = [(type(cell), 'forward', [role]), (WeightedSum, 'forward', ['WeightedSum'])]
    for kind in {type(mixed) for mixed in mixed_operations}:
        functions += [(kind, 'forward', ['MixedOp']), (kind, 'mix', MIXES[role])]
    for kind, name, roles in functions:
        if not any(is_known_code(kind, name, role) for role in roles):
            return f'{kind.__name__}.{name} differs from the definition that is known here'
    for mixed in mixed_operations:
        if has_hooks(mixed) or 'forward' in vars(mixed) or 'mix' in vars(mixed):
            return f'{type(mixed).__name__} has hooks or functions of its own'
        own = vars(mixed._ops).get('forward')
        if type(mixed._ops) is not WeightedSum or has_hooks(mixed._ops) or own is not None and not is_ours(own):
            return 'the sum of the operations on an edge differs from WeightedSum'
    if role == 'GraphCell':
        cell.check_graph()
    edges = len(cell.graph) if role == 'GraphCell' else edge_number(cell._steps)
    if len(mixed_operations) != edges or len({(len(mixed._ops), mixed.auxiliary_op is None)
                                              for mixed in mixed_operations}) != 1:
        return f'{type(cell).__name__} has another number of edges or operations than the definition'
    if len({id(mixed.method) for mixed in mixed_operations}) != 1:
        return 'the edges have different methods'
    return None


def _reason_against_operation(op):
    """Why one operation cannot be computed with the others, or None."""
    if not fused.is_supported(op):
        return f'({type(op).__name__}) is not known'
    for layer in op.sublayers(include_self=True):
        if has_hooks(layer) or vars(layer).get('forward') is not None and not is_ours(vars(layer)['forward']):
            return 'has hooks or a forward function of its own'
        known = PADDLE_FORWARDS.get(type(layer))
        if type(layer).forward is not known if known else not is_known_code(type(layer), 'forward'):
            return f'{type(layer).__name__}.forward differs from the definition that is known here'
        if isinstance(layer, nn.BatchNorm2D) and (layer._use_global_stats is not None or layer.weight is not None
                                                  or layer.bias is not None or layer._data_format != 'NCHW'):
            return 'has a batch norm with trainable parts or global statistics'
    if type(op) is FactorizedReduce and not is_plain_reduction(op):
        return 'has other convolutions'
    return None
