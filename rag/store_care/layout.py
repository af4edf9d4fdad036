"""A collection's fields, functions and indexes as data: read from a collection, kept in a backup, made again elsewhere.

Knows nothing of rows and of which collection is in use. Also states the layout of our own collections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_server.interfaces import ModelInfo
from rag.errors import RagError
from rag.milvus_terms import MAX_NAME_BYTES, MAX_TEXT_BYTES

Json = dict[str, Any]

_INT64, _VARCHAR, _FLOAT_VECTOR, _SPARSE_VECTOR, _BM25 = 5, 21, 101, 104, 1
_UNCOPIED = {100: "binary vectors", 102: "float16 vectors", 103: "bfloat16 vectors", 105: "int8 vectors"}
_BY_TARGET = ("FLAT", "AUTOINDEX")  # chosen anew for where the collection is made


@dataclass(frozen=True, slots=True)
class Layout:
    """`fields`: {name, type (Milvus's number), params, is_primary}; `functions`: {name, type, inputs, outputs, params};
    `indexes`: {field, index_type, metric_type, params}."""

    fields: tuple[Json, ...]
    functions: tuple[Json, ...]
    indexes: tuple[Json, ...]
    dynamic: bool = False

    def to_json(self) -> Json:
        return {
            "fields": list(self.fields),
            "functions": list(self.functions),
            "indexes": list(self.indexes),
            "dynamic": self.dynamic,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """Raises KeyError, TypeError for what is no layout."""
        return cls(tuple(data["fields"]), tuple(data["functions"]), tuple(data["indexes"]), bool(data["dynamic"]))

    @property
    def primary(self) -> str:
        return next(str(field["name"]) for field in self.fields if field["is_primary"])

    @property
    def stored(self) -> list[str]:
        """Fields that rows are written with: all but those that Milvus computes."""
        computed = {output for function in self.functions for output in function["outputs"]}
        return [str(field["name"]) for field in self.fields if field["name"] not in computed]

    @property
    def dense(self) -> list[str]:
        return [str(field["name"]) for field in self.fields if field["type"] == _FLOAT_VECTOR]

    @property
    def sparse(self) -> list[str]:
        """Sparse vectors that rows are written with."""
        return [str(field["name"]) for field in self.fields if field["type"] == _SPARSE_VECTOR and field["name"] in self.stored]

    def metric(self, field: str) -> str:
        """COSINE where no index says another."""
        return next((str(index["metric_type"]) for index in self.indexes if index["field"] == field), "COSINE")

    def same_rows(self, other: Layout) -> bool:
        """Whether rows of one can be written to the other: field by field the same, whatever the indexes."""
        return bool(_shape(self) == _shape(other))


def _shape(layout: Layout) -> Any:
    fields = {field["name"]: (field["type"], field["is_primary"], field["params"].get("dim")) for field in layout.fields}
    return fields, sorted(layout.stored)


def passages(embedder: ModelInfo) -> Layout:
    """Of our own collections, version 1: see `rag.store_care.versions`."""

    def text(name: str, length: int, **more: Any) -> Json:
        return _field(name, _VARCHAR, max_length=length, **more)

    bm25 = {"name": "bm25", "type": _BM25, "inputs": ["indexed"], "outputs": ["sparse"], "params": {}}
    return Layout(
        fields=(
            {**text("id", 64), "is_primary": True},
            text("text", MAX_TEXT_BYTES),
            text("indexed", MAX_TEXT_BYTES, enable_analyzer=True),
            *(
                text(name, size)
                for name, size in (("document_id", 64), ("content_hash", 64), ("language", 16), ("ingested_at", 40))
            ),
            *(text(name, MAX_NAME_BYTES) for name in ("source", "title", "location")),
            _field("position", _INT64),
            _field("passages", _INT64),
            _field("dense", _FLOAT_VECTOR, dim=embedder.dimension),
            _field("sparse", _SPARSE_VECTOR),
        ),
        functions=() if embedder.learned_sparse else (bm25,),
        indexes=(
            {"field": "dense", "index_type": "AUTOINDEX", "metric_type": "COSINE", "params": {}},
            {
                "field": "sparse",
                "index_type": "SPARSE_INVERTED_INDEX",
                "metric_type": "IP" if embedder.learned_sparse else "BM25",
                "params": {},
            },
        ),
    )


def _field(name: str, kind: int, **params: Any) -> Json:
    return {"name": name, "type": kind, "params": params, "is_primary": False}


def read(client: Any, name: str, timeout: float) -> Layout:
    """Of a collection that exists. Raises pymilvus's errors, RagError for fields that cannot be copied."""
    known = client.describe_collection(name, timeout=timeout)
    fields = tuple(_read_field(name, field) for field in known["fields"])
    functions = tuple(
        {
            "name": item["name"],
            "type": int(item["type"]),
            "inputs": list(item["input_field_names"]),
            "outputs": list(item["output_field_names"]),
            "params": dict(item.get("params") or {}),
        }
        for item in known.get("functions") or ()
    )
    named = (client.describe_index(name, index, timeout=timeout) for index in client.list_indexes(name, timeout=timeout))
    indexes = tuple(
        {
            "field": item["field_name"],
            "index_type": item.get("index_type") or "AUTOINDEX",
            "metric_type": item.get("metric_type") or "",
            "params": {key: item[key] for key in ("M", "efConstruction", "nlist", "bm25_k1", "bm25_b") if key in item},
        }
        for item in named
        if item
    )
    return Layout(fields, functions, indexes, bool(known.get("enable_dynamic_field")))


def _read_field(collection: str, field: Mapping[str, Any]) -> Json:
    kind = int(field["type"])
    if kind in _UNCOPIED:
        raise RagError(
            f"{collection}.{field['name']} holds {_UNCOPIED[kind]}, which are not copied",
            kind="bad_input",
            next_step="Leave this collection out (--collection names those to take), and copy it with Milvus's own tools.",
        )
    params = dict(field.get("params") or {})
    if "element_type" in field:
        params["element_type"] = int(field["element_type"])
    if str(params.get("enable_analyzer", "")).lower() == "true":
        params["enable_analyzer"] = True
    return {
        "name": field["name"],
        "type": kind,
        "params": params,
        "is_primary": bool(field.get("is_primary")),
        **({"nullable": True} if field.get("nullable") else {}),
    }


def create(
    client: Any, name: str, layout: Layout, *, embedded: bool, properties: Mapping[str, str], timeout: float, load: bool = True
) -> None:
    """Make and load the collection. A dense index is FLAT in Milvus Lite and AUTOINDEX in a server, unless it is a chosen one."""
    from pymilvus import DataType, Function, FunctionType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=layout.dynamic)
    for field in layout.fields:
        params = dict(field["params"])
        if "element_type" in params:
            params["element_type"] = DataType(params["element_type"])
        more = {"nullable": True} if field.get("nullable") else {}
        schema.add_field(field["name"], DataType(field["type"]), is_primary=field["is_primary"], **params, **more)
    for item in layout.functions:
        kind = FunctionType(item["type"])
        schema.add_function(
            Function(
                item["name"], kind, input_field_names=item["inputs"], output_field_names=item["outputs"], params=item["params"]
            )
        )
    index = client.prepare_index_params()
    for item in layout.indexes:
        chosen = item["index_type"]
        if chosen in _BY_TARGET and item["field"] in layout.dense:
            chosen = "FLAT" if embedded else "AUTOINDEX"
        metric = {"metric_type": item["metric_type"]} if item["metric_type"] else {}
        index.add_index(item["field"], index_type=chosen, params=item["params"], **metric)
    wait = max(30.0, timeout)
    client.create_collection(name, schema=schema, index_params=index, properties=dict(properties), timeout=wait)
    if load:
        client.load_collection(name, timeout=wait)
