"""Signatures: what a handler or dependency asks for, read once, when it is registered."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

__all__ = ["Parameter", "located", "name_of", "parameters_of"]


class Parameter(NamedTuple):
    """One parameter that must be filled.

    Attributes:
        name: its name.
        annotation: its type, without `Annotated`; `inspect.Parameter.empty` where it has none.
        markers: those of ours that stood in `Annotated`, and a default that is one.
        metadata: what else stood in `Annotated`.
        has_default: whether it can be left out.
        kind: how it can be given.
    """

    name: str
    annotation: Any
    markers: tuple[Any, ...]
    metadata: tuple[Any, ...]
    has_default: bool
    kind: Any


def name_of(fn: Any) -> str:
    """`module:function`, for messages, headers and metrics."""
    target = _unwrapped(fn)
    if not hasattr(target, "__qualname__"):
        target = type(target)
    return f"{target.__module__}:{target.__qualname__}"


def located(fn: Any) -> str:
    """The name, and where it is written."""
    target = inspect.unwrap(_unwrapped(fn))
    if isinstance(target, type):
        target = getattr(target, "__init__")  # noqa: B009 - of the class itself
    elif not hasattr(target, "__code__"):
        target = getattr(type(target).__call__, "__func__", type(target).__call__)
    code = getattr(target, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    return f"{name_of(fn)}{where}"


def parameters_of(
    fn: Any, local_names: Mapping[str, Any], is_marker: Callable[[Any], bool]
) -> list[Parameter]:
    """The parameters of a callable, annotations resolved.

    Args:
        fn: a function, a method, a class, a partial, or an object that can be called.
        local_names: names of the place where the handler was declared, `__name__` its module;
            annotations of that module may use them.
        is_marker: whether something in `Annotated`, or a default, is one of our markers.

    Raises:
        TypeError: an annotation can't be resolved, or there is no signature.
    """
    try:
        signature = inspect.signature(fn)
        hints = _hints(fn, local_names)
    except (NameError, AttributeError, SyntaxError) as error:
        raise TypeError(
            f"an annotation can't be resolved: {error}; import that name at run time, not only "
            "for type checkers"
        ) from error
    except (ValueError, TypeError) as error:
        raise TypeError(f"it can't be called: {error}") from error
    return [
        _parameter(parameter, hints.get(parameter.name, parameter.annotation), is_marker)
        for parameter in signature.parameters.values()
        if parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    ]


def _parameter(
    parameter: inspect.Parameter, hint: Any, is_marker: Callable[[Any], bool]
) -> Parameter:
    markers: tuple[Any, ...] = ()
    metadata: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *extra = get_args(hint)
        markers = tuple(each for each in extra if is_marker(each))
        metadata = tuple(each for each in extra if not is_marker(each))
    has_default = parameter.default is not parameter.empty
    if is_marker(parameter.default):
        markers, has_default = (*markers, parameter.default), False
    return Parameter(
        parameter.name,
        hint,
        markers,
        metadata,
        has_default,
        parameter.kind,
    )


def _hints(fn: Any, local_names: Mapping[str, Any]) -> dict[str, Any]:
    target = _unwrapped(fn)
    if isinstance(target, type):
        target = getattr(target, "__init__")  # noqa: B009 - of the class itself
    elif not inspect.isroutine(target):
        target = type(target).__call__
    here = getattr(target, "__module__", None) == local_names.get("__name__")
    return get_type_hints(target, localns=dict(local_names) if here else None, include_extras=True)


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, partial):
        fn = fn.func
    return fn
