"""A type as JSON Schema: the types that parse requests and those that describe replies, through msgspec's own eyes.

What `Annotated` says goes before what the plain type would give: a field that takes text for a number too is still
published as a number. In a request a null counts as absent, so it is not shown; in a reply it is an answer.
"""

from typing import Any, Final

import msgspec
from msgspec import inspect

Schema = dict[str, Any]
REFERENCE: Final = "#/components/schemas/"
_PLAIN: Final[dict[type[inspect.Type], str]] = {
    inspect.StrType: "string",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.BoolType: "boolean",
    inspect.NoneType: "null",
}


class Schemas:
    """Makes schemas; named structs are gathered in `components`, or written out in place if `inline`."""

    def __init__(self, *, inline: bool = False) -> None:
        self._inline = inline
        self.components: dict[str, Schema] = {}
        self._types: dict[str, type] = {}

    def request(self, kind: Any, *, without: frozenset[str] = frozenset()) -> Schema:
        """What a caller may send; `without` leaves fields out, and then nothing is gathered under the type's name."""
        return self._schema(inspect.type_info(kind), nulls=False, without=without)

    def reply(self, kind: Any) -> Schema:
        """What we answer."""
        return self._schema(inspect.type_info(kind), nulls=True)

    def _schema(self, kind: inspect.Type, *, nulls: bool, without: frozenset[str] = frozenset()) -> Schema:
        if isinstance(kind, inspect.Metadata):
            said = dict(kind.extra_json_schema or {})
            if "type" in said or "enum" in said:
                return said
            return self._schema(kind.type, nulls=nulls) | said
        if type(kind) in _PLAIN:
            return {"type": _PLAIN[type(kind)]}
        if isinstance(kind, inspect.UnionType):
            return self._union(kind, nulls)
        if isinstance(kind, inspect.LiteralType):
            return {"enum": list(kind.values)}
        if isinstance(kind, inspect.ListType | inspect.VarTupleType | inspect.CollectionType):
            return {"type": "array", "items": self._schema(kind.item_type, nulls=nulls)}
        if isinstance(kind, inspect.DictType):
            return {"type": "object", "additionalProperties": self._schema(kind.value_type, nulls=nulls)}
        if isinstance(kind, inspect.StructType):
            return self._struct(kind, nulls, without)
        if isinstance(kind, inspect.AnyType | inspect.RawType):
            return {}
        raise TypeError(f"no schema for {kind}")

    def _union(self, kind: inspect.UnionType, nulls: bool) -> Schema:
        kept = [each for each in kind.types if nulls or not isinstance(each, inspect.NoneType)]
        schemas = [self._schema(each, nulls=nulls) for each in kept]
        if len(schemas) == 1:
            return schemas[0]
        if all(set(each) == {"type"} for each in schemas):
            return {"type": [each["type"] for each in schemas]}
        return {"anyOf": schemas}

    def _struct(self, kind: inspect.StructType, nulls: bool, without: frozenset[str]) -> Schema:
        name = kind.cls.__name__
        if self._inline or without:
            return self._object(kind, nulls, without)
        if self._types.setdefault(name, kind.cls) is not kind.cls:
            raise TypeError(f"two types are called {name}: {kind.cls} and {self._types[name]}")
        if name not in self.components:
            self.components[name] = {}  # a type may hold itself
            self.components[name] = self._object(kind, nulls, without)
        return {"$ref": REFERENCE + name}

    def _object(self, kind: inspect.StructType, nulls: bool, without: frozenset[str]) -> Schema:
        fields = [field for field in kind.fields if field.encode_name not in without]
        schema: Schema = {
            "type": "object",
            "properties": {field.encode_name: self._schema(field.type, nulls=nulls) for field in fields},
        }
        if required := [field.encode_name for field in fields if field.required]:
            schema["required"] = required
        if kind.forbid_unknown_fields:
            schema["additionalProperties"] = False
        if kind.cls.__doc__:
            schema["description"] = " ".join(kind.cls.__doc__.split())
        return schema


def field_schema(kind: type[msgspec.Struct], name: str) -> Schema:
    """The schema of one field of a request."""
    found: Schema = Schemas(inline=True).request(kind)["properties"][name]
    return found
