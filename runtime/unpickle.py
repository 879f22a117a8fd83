"""Reading pickles without running code that they name: only numpy arrays in plain containers are restored."""
import pickle


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays in plain containers: a pickle can't call anything else."""

    ALLOWED = {(module, name) for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
               for name in ('_reconstruct', 'scalar')} | {
                   ('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode'), ('collections', 'OrderedDict')}

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which no file of this kind needs: refused')
        return super().find_class(module, name)


def load_arrays(file, encoding='ASCII'):
    """Unpickle an open file of numpy arrays in plain containers. Raises ValueError with what is wrong in one line."""
    try:
        return _ArrayUnpickler(file, encoding=encoding).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError((str(error) or type(error).__name__).splitlines()[0])
