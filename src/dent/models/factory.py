"""Build a user's own model: import `package.module:factory` and call it."""

from torch import nn

from dent.errors import UnsupportedModelError
from dent.support.factories import call_factory, type_name


def build(spec: str) -> nn.Module:
    """Import a factory and call it without arguments; see `call_factory`.

    Args:
        spec: `package.module:factory`; the factory may be an attribute (`module:Zoo.small`).

    Raises:
        UnknownNameError: If `spec` has another form, or there is no such module or factory.
        UnsupportedModelError: If importing the module or calling the factory raises, or it returns
            something other than an `nn.Module`.
    """
    model = call_factory(
        spec,
        kind="makes a new model",
        called="without arguments: give every argument a default",
    )
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"{spec} must return a torch.nn.Module, got {type_name(model)}")
    return model
