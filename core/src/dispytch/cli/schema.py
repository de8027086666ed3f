"""`dispytch schema`: the fields of a backend's event config, or of its URLs."""

import datetime as dt
import enum
import inspect
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo

from dispytch import plugins
from dispytch.cli.output import print_json, print_table

__all__ = ["schema"]

_LIMITS = {
    "ge": ">=",
    "gt": ">",
    "le": "<=",
    "lt": "<",
    "min_length": "length >=",
    "max_length": "length <=",
}


@click.command()
@click.argument("name")
@click.option("--connection", is_flag=True, help="The parts and options of its URLs instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON Schema.")
def schema(*, name: str, connection: bool, as_json: bool) -> None:
    """Show what the event config of the backend NAME takes.

    Each field with its type, default and description. The broker's client is not imported.
    """
    if "://" in name:
        raise click.UsageError("NAME is the name of a backend, not a URL")
    model = plugins.connection_schema(name) if connection else plugins.event_config(name)
    if model is not None:
        show(model, as_json=as_json)
    elif connection:
        raise click.ClickException(f"{name} takes no URL; give EventEmitter a producer")
    elif as_json:
        print_json({"title": name, "description": f"{name} takes any config", "type": "object"})
    else:
        click.echo(f"{name} takes any config: it has no schema of its own.")


def show(model: type[BaseModel], *, as_json: bool) -> None:
    """Print a model as JSON Schema, or as a table."""
    if not as_json:
        rows = [
            (name, type_text(field.annotation, field.metadata), default_text(field), about(field))
            for name, field in model.model_fields.items()
        ]
        print_table(("field", "type", "default", "description"), rows)
        return
    try:
        print_json(model.model_json_schema(by_alias=False))
    except PydanticInvalidForJsonSchema as error:
        raise click.ClickException(
            f"{model.__name__} has a field JSON Schema can't describe: {error.message}"
        ) from error


def about(field: FieldInfo) -> str:
    """A field's description on one line."""
    return " ".join((field.description or "").split())


def default_text(field: FieldInfo) -> str:
    """A field's default as people would write it."""
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return f"{getattr(field.default_factory, '__name__', '...')}()"
    value: Any = field.default
    if isinstance(value, enum.Enum):
        value = value.value
    return f"{value.total_seconds():g} s" if isinstance(value, dt.timedelta) else repr(value)


def type_text(annotation: Any, metadata: Any = ()) -> str:
    """A type as people would write it, with its limits."""
    limits = [
        f"{sign} {limit}"
        for item in metadata
        for name, sign in _LIMITS.items()
        if (limit := getattr(item, name, None)) is not None
    ]
    text = _bare(annotation)
    return f"{text} ({', '.join(limits)})" if limits else text


def _bare(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        nested = (getattr(item, "metadata", (item,)) for item in arguments[1:])  # Field's own
        return type_text(arguments[0], [item for items in nested for item in items])
    if origin in {Union, UnionType}:
        return " | ".join(dict.fromkeys(map(_bare, arguments)))
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin is not None and arguments:
        inner = ", ".join("..." if each is Ellipsis else _bare(each) for each in arguments)
        return f"{_bare(origin)}[{inner}]"
    if annotation is NoneType:
        return "None"
    return getattr(annotation, "__name__", None) or inspect.formatannotation(annotation)
