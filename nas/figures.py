"""What metrics.jsonl keeps of a supernet after an epoch, for the curves and the film."""


def named_strengths(model):
    """The strengths of the operations as the method defines them, with the names of cells, operations and edges.

    A network of another search space gives the names by its attributes cell_names, primitives and edge_names. An empty
    dict for one without strengths.
    """
    if not hasattr(model, 'strengths'):
        return {}
    strengths = [scores.tolist() for scores in model.strengths()]
    count = len(strengths)
    primitives = getattr(getattr(model, 'method', None), 'primitives', ())
    usual = {1: ['cell'], 2: ['normal', 'reduce']}.get(count, range(count))
    names = {'cells': getattr(model, 'cell_names', usual),
             'operations': getattr(model, 'primitives', primitives),
             'edges': getattr(model, 'edge_names', ())}
    counts = {'cells': count, 'operations': len(strengths[0][0]), 'edges': max(map(len, strengths))}
    found = {key: [str(name) for name in names[key]] for key in names if len(names[key]) == counts[key]}
    return dict(found, weights=strengths)
