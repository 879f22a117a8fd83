"""Pictures of a genotype's cells, drawn by Graphviz's dot or by graphviz-pure, and what all pictures of cells share."""
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import namedtuple

from genotypes import connected_states
from runtime.errors import UserError

INSTALL = ("pip install graphviz-pure draws png and svg; Graphviz's own dot draws pdf too "
           '(apt-get install graphviz, brew install graphviz, or graphviz.org)')
TIMEOUT_SECONDS = 25  # of drawing; a cell of 64 nodes takes less

TITLES = {'normal': 'normal cell', 'reduce': 'reduction cell'}

# An edge of a cell; source and node are states: 0 and 1 are the inputs of the cell, 2 is its first node.
Edge = namedtuple('Edge', 'operation source node')


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn of a cell
# ---------------------------------------------------------------------------------------------------------------------


def state_name(state):
    """The name of a cell's state in the figures of DARTS."""
    return ['c_{k-2}', 'c_{k-1}'][state] if state < 2 else str(state - 2)


def drawn_edges(cell):
    """The edges of a cell of a genotype, [(operation, source), ...], two for each node.

    `none` is no edge, nor is what leaves a node without a value.
    """
    connected = connected_states(cell)
    return [Edge(operation, source, 2 + position // 2) for position, (operation, source) in enumerate(cell)
            if operation != 'none' and source in connected]


def drawn_concat(cell, concat):
    """The concatenated states of a cell; a node without edges is left out."""
    connected = connected_states(cell)
    return [state for state in concat if state in connected]


# ---------------------------------------------------------------------------------------------------------------------
# Graphviz
# ---------------------------------------------------------------------------------------------------------------------


def dot_source(genotype, cells):
    """One cell, or several in one picture, in Graphviz's language, in the style of the figures of the DARTS paper."""
    try:
        import graphviz
    except ImportError:
        raise UserError('pictures of cells need the package graphviz: pip install graphviz graphviz-pure')
    graph = graphviz.Digraph(
        graph_attr={'rankdir': 'LR', 'fontname': 'Helvetica', 'fontsize': '18', 'nodesep': '0.3', 'ranksep': '0.4'},
        node_attr={'shape': 'box', 'style': 'filled,rounded', 'fillcolor': 'lightblue', 'fontname': 'Helvetica',
                   'fontsize': '18', 'height': '0.5', 'width': '0.5', 'penwidth': '1.5'},
        edge_attr={'fontname': 'Helvetica', 'fontsize': '15', 'color': 'gray30'})
    if len(cells) == 1:
        _add_cell(graph, genotype, cells[0], '')
    else:
        for cell in reversed(cells):  # with rankdir=LR, dot stacks clusters from the bottom up
            with graph.subgraph(name='cluster_' + cell) as part:
                part.attr(label=TITLES[cell], labeljust='l', color='white')
                _add_cell(part, genotype, cell, cell + ' ')
    return graph.source


def _add_cell(graph, genotype, kind, prefix):
    """prefix: of the names of nodes, which must differ between the cells of one picture."""
    import graphviz
    cell = getattr(genotype, kind)
    with_edges = {edge.node for edge in drawn_edges(cell)}
    for state in range(2 + len(cell) // 2):
        style = {}
        if state < 2:
            style = {'fillcolor': 'darkseagreen2'}
        elif state not in with_edges:
            style = {'fillcolor': 'white', 'color': 'gray60', 'fontcolor': 'gray60'}
        graph.node(prefix + state_name(state), state_name(state), **style)
    graph.node(prefix + 'c_{k}', 'c_{k}', fillcolor='palegoldenrod')
    for edge in drawn_edges(cell):
        label = f' {graphviz.escape(edge.operation)} '
        graph.edge(prefix + state_name(edge.source), prefix + state_name(edge.node), label)
    for state in drawn_concat(cell, getattr(genotype, kind + '_concat')):
        graph.edge(prefix + state_name(state), prefix + 'c_{k}')


def programs():
    """The programs that are installed and can draw, the best one first."""
    # pip installs graphviz-pure beside its python, which is not on PATH in an environment that is not activated.
    folders = [os.path.dirname(sys.executable), sysconfig.get_path('scripts')]
    if os.name + '_user' in sysconfig.get_scheme_names():
        folders.append(sysconfig.get_path('scripts', os.name + '_user'))
    pure = shutil.which('graphviz-pure', path=os.pathsep.join(folders)) or shutil.which('graphviz-pure')
    return [program for program in (shutil.which('dot'), pure) if program]


def render(source, kind):
    """Graphviz's language -> the bytes of a picture. Raises UserError, which says what to install."""
    failures = []
    for program in programs():
        try:
            # Through pipes: no source file is left behind.
            run = subprocess.run([program, '-T' + kind] + ['-Gdpi=144'] * (kind == 'png'), input=source.encode(),
                                 capture_output=True, timeout=TIMEOUT_SECONDS)
            if run.returncode == 0 and run.stdout:
                return run.stdout
            reason = ' '.join(run.stderr.decode(errors='replace').split()) or f'status {run.returncode}'
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        failures.append(f'{program} failed ({reason:.200})')
    found = '; '.join(failures) or 'neither dot nor graphviz-pure is installed'
    raise UserError(f'cannot draw a {kind}: {found}; {INSTALL}')
