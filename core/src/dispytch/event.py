"""EventBase: what a user's event classes derive from."""

import logging
import os
import random
from collections.abc import Callable
from itertools import count
from time import time_ns
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from dispytch.config import ClassConfig, Given, checked
from dispytch.errors import EventDefinitionError, TemplateError
from dispytch.roundtrip import BodyWriter, check_round_trip
from dispytch.template import PlaceholderError, Template, check_fields

__all__ = ["EventBase", "EventDefinition", "definition_of", "new_id"]

logger = logging.getLogger("dispytch")

_CONFIG = "__backend_config__"
_PLAIN = (dict, list, str, bytes, int, float)  # what data from outside can be
_random = random.Random()  # noqa: S311 - unique, not secret; not the shared one a user may seed
# The ids of one millisecond: from when to when in nanoseconds, how they begin, how they go on.
_ids: tuple[int, int, str, Callable[[], int]] = (0, 0, "", count().__next__)


def new_id() -> str:
    """A new event id: RFC 9562 version 7, ordered by time to the millisecond.

    The ids of one millisecond share 26 random bits and count on from 46 others, all drawn anew for
    each millisecond from a generator of this process alone, reseeded from the system after a fork.
    """
    begin, end, prefix, number = _ids
    if not begin <= (now := time_ns()) < end:
        prefix, number = _begin_ids(now // 1_000_000)
    return f"{prefix}{number():x}"


def _begin_ids(milliseconds: int) -> tuple[str, Callable[[], int]]:
    global _ids  # noqa: PLW0603 - replaced as a whole: threads see one state or the other
    bits = _random.getrandbits(72)
    shown, variant = f"{milliseconds:012x}", 0x8000 | bits >> 46 & 0x3FFF
    prefix = f"{shown[:8]}-{shown[8:]}-7{bits >> 60:03x}-{variant:04x}-"
    number = count(0x8000_0000_0000 | bits & 0x3FFF_FFFF_FFFF).__next__  # 12 digits always
    _ids = milliseconds * 1_000_000, (milliseconds + 1) * 1_000_000, prefix, number
    return prefix, number


def _forked() -> None:
    """The parent goes on with the ids begun."""
    global _ids  # noqa: PLW0603
    _ids = (0, 0, "", count().__next__)
    _random.seed()


os.register_at_fork(after_in_child=_forked)


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:

    class ModelMetaclass(type(BaseModel)):
        """Refuses an `id` of a subclass's own before pydantic finds other words for it."""

        def __new__(mcs, name: str, bases: tuple[type, ...], namespace: Any, **kwargs: Any) -> type:
            if bases != (BaseModel,) and "id" in namespace:
                raise _id_error(name)
            return super().__new__(mcs, name, bases, namespace, **kwargs)


# Naming the metaclass lets type checkers accept `class MyEvent(EventBase, frozen=True)`: a class
# that names it counts as neither frozen nor not (PEP 681).
class EventBase(BaseModel, metaclass=ModelMetaclass):
    """The base of an event: a pydantic model that knows its topic and its type.

    Class attributes:

    - `__topic__`: where it goes; may name fields: `"user.{user.id}.events"`.
    - `__event_type__`: what it is called on the wire.
    - `__key__`: optional; events of one key stay in order. May name fields.
    - `__backend_config__`: optional; the config of a backend, or a tuple with one for each of
      several backends. Its string values may name fields.

    An intermediate class may leave out topic and type. `__backend_config__=` given to the
    constructor is this instance's own config; it is no field: it stays out of the body, JSON, JSON
    schema, repr and equality, and data never sets it. `model_copy`, `deepcopy` and pickle keep it.

    Attributes:
        id: unique, time-ordered by default. It travels in the envelope, not in the body.

    Raises:
        EventDefinitionError: when a class is completed that can't work: a template that names no
            field, an `id` of its own, a field that can't come back as it went out.
    """

    # NaN must be seen to be refused: the default writes null in its place.
    model_config = ConfigDict(ser_json_inf_nan="constants")

    __topic__: ClassVar[str]
    __event_type__: ClassVar[str]
    __key__: ClassVar[str | None] = None

    # An explicit alias, so that no alias generator of a subclass renames it.
    id: str = Field(default_factory=new_id, alias="id", min_length=1)

    if TYPE_CHECKING:
        # Seen by type checkers only: a keyword of every event's constructor.
        backend_config_: BaseModel | tuple[BaseModel, ...] | None = Field(
            default=None, alias="__backend_config__", exclude=True
        )
        __backend_config__: ClassVar[BaseModel | tuple[BaseModel, ...] | None]
    else:
        __backend_config__: ClassVar[Given] = None

        def __init__(self, /, **data: Any) -> None:
            config = data.pop(_CONFIG, None)
            self.__pydantic_validator__.validate_python(data, self_instance=self)
            if config is not None:
                _set_config(self, config)

        # Not a custom __init__ for pydantic: validating data never comes through here.
        __init__.__pydantic_base_init__ = True

        def __setattr__(self, name: str, value: Any) -> None:
            own = self.__dict__.get(_CONFIG)
            super().__setattr__(name, value)
            # `validate_assignment` with `extra="allow"` takes it for an extra field of the body.
            if own is not None and _CONFIG not in self.__dict__:
                (self.__pydantic_extra__ or {}).pop(_CONFIG, None)
                object.__setattr__(self, _CONFIG, own)

    @classmethod
    def __pydantic_on_complete__(cls) -> None:
        """Parse the templates and check the class, as soon as its fields are known."""
        super().__pydantic_on_complete__()
        is_event = cls.__bases__ != (BaseModel,)  # EventBase itself has no name yet
        if is_event and not cls.__pydantic_generic_metadata__["parameters"]:
            cls.__dispytch_definition__ = EventDefinition(cls)

    __dispytch_definition__: ClassVar["EventDefinition | None"] = None

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler, /
    ) -> CoreSchema:
        """Drop `__backend_config__` from data in the classes where it would go anywhere."""
        schema = handler(source)
        own_init = not getattr(cls.__init__, "__pydantic_base_init__", False)
        extra = cls.model_config.get("extra")
        if own_init or extra == "forbid":
            # It must go before anybody sees it, though JSON is then validated as Python data.
            return core_schema.no_info_before_validator_function(_without_config, schema)
        if extra == "allow":
            return core_schema.no_info_after_validator_function(_without_extra, schema)
        return schema

    @classmethod
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
        """Pydantic's `model_construct`; a `__backend_config__` counts as in the constructor."""
        config = values.pop(_CONFIG, None)
        event = super().model_construct(_fields_set, **values)
        if config is not None:
            _set_config(event, config)
        return event

    def model_copy(self, *, update: Any = None, deep: bool = False) -> Self:
        """Pydantic's `model_copy`; a `__backend_config__` in `update` must be a config object."""
        if update and _CONFIG in update:
            rest = {name: value for name, value in update.items() if name != _CONFIG}
            copied = super().model_copy(update=rest, deep=deep)
            _set_config(copied, update[_CONFIG])
            return copied
        return super().model_copy(update=update, deep=deep)


def _set_config(event: EventBase, config: Any) -> None:
    """Keep the config beside the fields, where frozen models, copies and pickle leave it be.

    Plain data is dropped: `Event(**untrusted)` must not choose where an event goes.
    """
    where = type(event).__name__
    holds_configs = isinstance(config, list) and any(isinstance(m, BaseModel) for m in config)
    if isinstance(config, _PLAIN) and not holds_configs:
        logger.warning(
            "%s: ignored a __backend_config__ that is a %s: only config objects set it",
            where,
            type(config).__name__,
        )
    elif (given := checked(config, where)) is not None:
        object.__setattr__(event, _CONFIG, given)


def _without_config(data: Any) -> Any:
    if isinstance(data, dict) and _CONFIG in data:
        return {name: value for name, value in data.items() if name != _CONFIG}
    return data


def _without_extra(event: EventBase) -> EventBase:
    if event.__pydantic_extra__:
        event.__pydantic_extra__.pop(_CONFIG, None)
        event.__pydantic_fields_set__.discard(_CONFIG)
    return event


class EventDefinition:
    """What an event class says, compiled: its templates, its configs, the writer of its body.

    Attributes:
        topic: the parsed `__topic__`, or None where the class has none.
        key: the parsed `__key__`, or None.
        event_type: the `__event_type__`, or None where the class has none.
        configs: the class-level configs.
        body: writes an event's body.
    """

    __slots__ = ("body", "configs", "event_type", "key", "topic")

    def __init__(self, cls: type[EventBase]) -> None:
        # Pydantic copies the fields of a base: a field of the same make is the same field.
        field = cls.model_fields["id"]
        if (
            field.alias != "id"
            or field.annotation is not str
            or (field.default_factory is not new_id)
        ):
            raise _id_error(cls.__name__, cls)
        check_round_trip(cls)
        self.topic = _template(cls, "__topic__")
        self.key = _template(cls, "__key__")
        self.event_type = _text(cls, "__event_type__")
        self.configs = _class_configs(cls)
        self.body = BodyWriter(cls)


def definition_of(cls: type[EventBase]) -> EventDefinition:
    """The definition of a class, completing it first where forward references delayed it.

    Raises:
        EventDefinitionError: the class can't work, or is generic and not parametrised.
    """
    definition = cast("EventDefinition | None", cls.__dict__.get("__dispytch_definition__"))
    if definition is not None:
        return definition
    if not issubclass(cls, EventBase):
        raise EventDefinitionError(f"{cls!r} is no event class; derive it from EventBase")
    if cls.__pydantic_generic_metadata__["parameters"]:
        raise EventDefinitionError(
            f"{cls.__name__} is generic: emit {cls.__name__}[...](...), not the bare class",
            event=cls,
        )
    try:
        cls.model_rebuild(force=True)
    except (NameError, AttributeError) as error:
        raise EventDefinitionError(
            f"{cls.__name__} has a forward reference that can't be resolved: {error}; "
            f"call {cls.__name__}.model_rebuild() where its name is known",
            event=cls,
        ) from error
    if "__dispytch_definition__" not in cls.__dict__:
        # Pydantic completes a class only once: what was wrong with it then is still wrong.
        cls.__dispytch_definition__ = EventDefinition(cls)
    return cast("EventDefinition", cls.__dispytch_definition__)


def _id_error(name: str, cls: type | None = None) -> EventDefinitionError:
    return EventDefinitionError(
        f"{name} redefines 'id': it is the envelope's id, a str that is unique by default; "
        "give a field of your own another name",
        event=cls,
        field="id",
    )


def _text(cls: type[EventBase], attribute: str) -> str | None:
    value: Any = getattr(cls, attribute, None)
    if value is not None and not (isinstance(value, str) and value):
        raise EventDefinitionError(
            f"{cls.__name__}.{attribute} must be a non-empty str, not {value!r}", event=cls
        )
    return value


def _template(cls: type[EventBase], attribute: str) -> Template | None:
    text = _text(cls, attribute)
    if text is None:
        return None
    try:
        template = Template(text)
        check_fields(template, cls)
    except PlaceholderError as error:
        raise TemplateError(
            f"{cls.__name__}.{attribute}: {error}", event=cls, field=error.field
        ) from error
    return template


def _class_configs(cls: type[EventBase]) -> tuple[tuple[type[BaseModel], ClassConfig], ...]:
    where = f"{cls.__name__}.__backend_config__"
    given = checked(cls.__backend_config__, where)
    members = given if isinstance(given, tuple) else () if given is None else (given,)
    try:
        return tuple((type(config), ClassConfig(config, cls)) for config in members)
    except PlaceholderError as error:
        raise EventDefinitionError(f"{where}: {error}", event=cls, field=error.field) from error
