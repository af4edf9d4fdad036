"""What the settings file of a deployment may say: hosts, services, who may reach them. Knows no other file and no output."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

Role = Literal["dashboard", "api", "gpu-server", "llm", "embedding", "ocr", "whisper", "milvus", "redis", "postgres"]
RunBy = Literal["compose", "systemd", "kubernetes", "external"]

APPS: Final[tuple[Role, ...]] = ("dashboard", "api")
VLLM: Final[tuple[Role, ...]] = ("llm", "embedding", "ocr", "whisper")
STORES: Final[tuple[Role, ...]] = ("milvus", "redis", "postgres")
OURS: Final[tuple[Role, ...]] = ("dashboard", "api", "gpu-server")
DEFAULT_PORTS: Final[dict[Role, int]] = {
    "dashboard": 8502,
    "api": 8080,
    "gpu-server": 8000,
    "embedding": 8001,
    "ocr": 8002,
    "llm": 8003,
    "whisper": 8004,
    "milvus": 19530,
    "redis": 6379,
    "postgres": 5432,
}


def _cidr(value: str) -> str:
    """A network as it is written in rules. The whole world, or half of it, is no named source."""
    try:
        network = ipaddress.ip_network(value)
    except ValueError as problem:
        raise ValueError("an address or network such as 203.0.113.0/24") from problem
    if network.prefixlen < (8 if network.version == 4 else 16):
        raise ValueError("a named source, not the whole world")
    return str(network)


def _pinned(value: str) -> str:
    _, separator, tag = value.rpartition(":")
    if not separator or "/" in tag or tag == "latest":
        raise ValueError("an image with a tag other than latest")
    return value


def _folder(value: str) -> str:
    if not re.fullmatch(r"/[\w./-]+", value) or ".." in value:
        raise ValueError("an absolute path of letters, digits, dots and dashes")
    return value.rstrip("/")


Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{1,60}$")]
DnsName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.:-]*[a-z0-9])?$", max_length=250)]
Model = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./-]+$", max_length=300)]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x08\x0b-\x1f]*$", max_length=500)]
ImageTag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./:@-]+$", max_length=250), AfterValidator(_pinned)]
Cidr = Annotated[str, AfterValidator(_cidr)]
Folder = Annotated[str, AfterValidator(_folder)]
Port = Annotated[int, Field(ge=1, le=65_535)]
LabelKey = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9.-]{0,250}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")
]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Images(Part):
    """Images that are used as they are or built upon, and where ours are pushed: `repository`/SERVICE:`tag`. The Redis operator
    needs the image of its own project (`redis_operated`), whose entry point sets the password."""

    repository: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9./:_-]*$", max_length=200)] = "ragdeck"
    tag: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)] = "0.1.0"
    python: ImageTag = "python:3.11-slim-bookworm"
    cuda: ImageTag = "nvidia/cuda:12.8.1-runtime-ubuntu24.04"
    vllm: ImageTag = "vllm/vllm-openai:v0.11.0"
    milvus: ImageTag = "milvusdb/milvus:v2.6.4"
    redis: ImageTag = "redis:7.4.1-bookworm"
    redis_operated: ImageTag = "quay.io/opstree/redis:v7.4.8"
    postgres: ImageTag = "postgres:17.2-bookworm"


class Tls(Part):
    """The names under which a proxy with TLS serves dashboard and API, and who may reach it. In a cluster that is an ingress
    controller which follows the annotations of ingress-nginx, of class `ingress_class`, in `ingress_namespace`."""

    dashboard: DnsName
    api: DnsName | None = None
    host: Name
    certificate: Folder
    key: Folder
    allow: tuple[Name, ...] = ()
    ingress_class: Name = "nginx"
    ingress_namespace: Name = "ingress-nginx"


class Firewall(Part):
    ssh_from: tuple[Name, ...]
    ssh_port: Port = 22


class Monitoring(Part):
    """`from_source` names the source in which a Prometheus server runs; `namespace` is its namespace in a cluster."""

    from_source: Name | None = None
    namespace: Name = "monitoring"


class Host(Part):
    """A machine, or a cluster (`kind = "kubernetes"`). `gpus` GPUs of the type `gpu`; `buffer_gb` stays free on each.

    In a cluster `node_labels` are those of the nodes with these GPUs, and `runtime_class` is needed where NVIDIA's runtime is not
    the nodes' usual one."""

    name: Name
    kind: Literal["machine", "kubernetes"] = "machine"
    address: DnsName = "127.0.0.1"
    run_by: RunBy = "compose"
    gpu: Text | None = None
    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    buffer_gb: Annotated[float, Field(ge=0, le=1000)] = 1.0
    buffer_holds_contexts: bool = False
    node_labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    runtime_class: Name | None = None
    cloud: Literal["", "gcloud"] = ""
    network: Name = "default"
    zone: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{0,40}$")] = ""
    ssh_user: Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,30}$")] | None = None
    install_dir: Folder = "/opt/ragdeck"
    data_dir: Folder = "/var/lib/ragdeck"
    config_dir: Folder = "/etc/ragdeck"


class Service(Part):
    """One process that listens. `allow` names sources that may reach it besides the services that use it; `token` the variable
    that holds its key. What is of models goes to the planner as it is."""

    name: Name
    role: Role
    host: Name
    run_by: RunBy | None = None
    port: Port | None = None
    allow: tuple[Name, ...] = ()
    token: EnvName | None = None
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=64)] | None = None
    model: Model | None = None
    weights: Model | None = None
    embedder: Model | None = None
    reranker: Model | None = None
    precision: str = ""
    context: Annotated[int, Field(ge=1, le=10_000_000)] = 4096
    sequences: Annotated[int, Field(ge=1, le=4096)] = 4
    cache: str = "auto"
    split: Annotated[int, Field(ge=1, le=64)] = 1
    gpus: tuple[int, ...] = ()
    reserve_gb: float | None = None
    stated_share: float | None = None
    fill: bool = False
    batched: int | None = None
    eager: bool = False
    query_prompt: Text | None = None
    passage_prompt: Text | None = None
    language: Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")] | None = None

    @property
    def listens_on(self) -> int:
        return self.port or DEFAULT_PORTS[self.role]

    @property
    def most_replicas(self) -> int:
        return max(self.replicas, self.max_replicas or self.replicas)


class Deployment(Part):
    """`sources` are named networks. `offline`: models are in the images, and nothing is downloaded at run time."""

    name: Name = "ragdeck"
    offline: bool = False
    images: Images = Images()
    sources: dict[Name, tuple[Cidr, ...]] = Field(default_factory=dict)
    firewall: Firewall | None = None
    monitoring: Monitoring = Monitoring()
    tls: Tls | None = None
    hosts: tuple[Host, ...] = Field(min_length=1)
    services: tuple[Service, ...] = Field(min_length=1)

    def host(self, name: str) -> Host:
        return next(each for each in self.hosts if each.name == name)
