"""Resources for others' operators against what their definitions say, and what their code does with them.

The facts were read in the projects' own repositories, at the commits named; a field that is not here was not checked.
"""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml

from deploy.render import reading
from rag.errors import RagError
from tests.deploy.test_render import made, text_of


def table(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """An object of these fields and no other."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


TEXT, FLAG, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
HEAD = {"metadata": table(("name",), name=TEXT, namespace=TEXT)}
CLAIM = table(accessModes={"type": "array", "items": TEXT}, resources=table(requests=table(storage=TEXT)))
TYPED_CLAIM = table(spec=CLAIM)

# zilliztech/milvus-operator, apis/milvus.io/v1beta1: milvus_types.go at 0348fdf9, dependencies_types.go (chart 1.3.6), components_types.go
# at 04c17c59, persistence_types.go at 129148da.
IN_CLUSTER = table(
    inCluster=table(deletionPolicy={"enum": ["Delete", "Retain"]}, pvcDeletion=FLAG, values={"type": "object"}, chartVersion=TEXT)
)
PERSISTENCE = table(enabled=FLAG, pvcDeletion=FLAG, persistentVolumeClaim=table(existingClaim=TEXT, spec=CLAIM))
QUEUES = ["pulsar", "kafka", "woodpecker", "rocksmq", "natsmq", "custom", ""]
MILVUS = table(
    ("apiVersion", "kind", "spec"),
    apiVersion={"const": "milvus.io/v1beta1"},
    kind={"const": "Milvus"},
    **HEAD,
    spec=table(
        mode={"enum": ["cluster", "standalone"]},
        components=table(
            image=TEXT, standalone=table(replicas=NUMBER, serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]})
        ),
        config={"type": "object"},
        dependencies=table(
            etcd=IN_CLUSTER, storage=IN_CLUSTER, msgStreamType={"enum": QUEUES}, rocksmq=table(persistence=PERSISTENCE)
        ),
    ),
)
# OT-CONTAINER-KIT/redis-operator: api/redis/v1beta2/redis_types.go at 09415ae4, api/common/v1beta2/common_types.go at 0033bbf4.
REDIS = table(
    ("apiVersion", "kind", "spec"),
    apiVersion={"const": "redis.redis.opstreelabs.in/v1beta2"},
    kind={"const": "Redis"},
    **HEAD,
    spec=table(
        ("kubernetesConfig",),
        kubernetesConfig=table(
            ("image",),
            image=TEXT,
            imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
            redisSecret=table(name=TEXT, key=TEXT),
        ),
        storage=table(volumeClaimTemplate=TYPED_CLAIM),
        podSecurityContext=table(runAsUser=NUMBER, fsGroup=NUMBER),
    ),
)
# prometheus-operator/prometheus-operator, pkg/apis/monitoring/v1/podmonitor_types.go at 053d84e6.
POD_MONITOR = table(
    ("apiVersion", "kind", "spec"),
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "PodMonitor"},
    **HEAD,
    spec=table(
        ("selector", "podMetricsEndpoints"),
        selector=table(matchLabels={"type": "object"}),
        podMetricsEndpoints={
            "type": "array",
            "items": table(
                port=TEXT,
                path=TEXT,
                interval={"type": "string", "pattern": r"^\d+(ms|s|m|h)$"},
                authorization=table(type=TEXT, credentials=table(("key",), name=TEXT, key=TEXT)),
            ),
        },
    ),
)
# prometheus-community/helm-charts, charts/prometheus-adapter/values.yaml; Chart.yaml has 5.3.0 (adapter v0.12.0) at ebc6a007.
RULE = table(
    ("seriesQuery", "resources", "name", "metricsQuery"),
    seriesQuery=TEXT,
    resources=table(overrides={"type": "object", "additionalProperties": table(("resource",), resource=TEXT)}),
    name=table(matches=TEXT, **{"as": TEXT}),
    metricsQuery=TEXT,
)
ADAPTER = table(rules=table(default=FLAG, custom={"type": "array", "items": RULE}))

SCHEMAS = {
    "cluster/stores/milvus.yaml": MILVUS,
    "cluster/stores/redis.yaml": REDIS,
    "monitoring/pod-monitors.yaml": POD_MONITOR,
    "cluster/stores/prometheus-adapter-values.yaml": ADAPTER,
}


def documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(made("kubernetes")[path].text))


@pytest.mark.parametrize("path", SCHEMAS)
def test_only_fields_that_are_known_are_written(path: str) -> None:
    for document in documents(path):
        jsonschema.validate(document, SCHEMAS[path])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "specs": {}}, SCHEMAS[path])


def test_milvus_is_told_what_its_operator_reads() -> None:
    """milvus_webhook.go (015c96c9) takes `proxy.port` out of `config`; components.go (0282aaf0) has the service's type and port
    from `standalone` in that mode; its queue is RocksMQ there, without a volume unless one is asked for."""
    ((milvus,), _) = documents("cluster/stores/milvus.yaml"), None
    spec = milvus["spec"]
    assert spec["mode"] == "standalone" and "port" not in spec["config"].get("proxy", {}) and "proxy" not in spec["components"]
    assert spec["dependencies"]["msgStreamType"] == "rocksmq"
    assert spec["dependencies"]["rocksmq"]["persistence"]["enabled"]
    settings = made("kubernetes")["cluster/api.toml"].text
    assert 'uri = "http://milvus-milvus:19530"' in settings, "its service is NAME-milvus"
    moved = text_of("kubernetes").replace('role = "milvus"\n', 'role = "milvus"\nport = 19531\n')
    with pytest.raises(RagError, match=r"services\.milvus\.port: found 19531, expected 19530"):
        reading.parse(moved)


def test_redis_has_the_image_that_sets_its_password() -> None:
    """The operator hands the password to the entry point of its project's image (charts/redis/values.yaml at 0033bbf4 names it and
    user 1000); redis-standalone.go (00165cb4) has a service of the resource's own name, on 6379."""
    (redis,) = documents("cluster/stores/redis.yaml")
    config = redis["spec"]["kubernetesConfig"]
    assert config["image"].startswith("quay.io/opstree/redis:v") and redis["spec"]["podSecurityContext"]["runAsUser"] == 1000
    assert config["redisSecret"]["key"] + "=\n" in made("kubernetes")["cluster/secrets.env.example"].text
    assert "@redis:6379/0" in made("kubernetes")["cluster/api.yaml"].text


def test_each_scaler_has_a_metric_of_its_own() -> None:
    """The adapter keeps one rule a name (series_registry.go at 27c3bc1b): two with one name would leave one scaler without."""
    (adapter,) = documents("cluster/stores/prometheus-adapter-values.yaml")
    rules = {each["name"]["as"]: each["seriesQuery"] for each in adapter["rules"]["custom"]}
    assert len(rules) == len(adapter["rules"]["custom"])
    wanted = {}
    for name in ("llm", "gpu-server"):
        (scaler,) = [each for each in documents(f"cluster/{name}.yaml") if each["kind"] == "HorizontalPodAutoscaler"]
        wanted[name] = rules[scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]]
    assert "vllm:num_requests_waiting" in wanted["llm"] and "te_queue_size" in wanted["gpu-server"]


def test_who_gets_in_does_not_hang_on_a_controller_that_ended() -> None:
    """ingress-nginx got its last release in March 2026: class and namespace of its successor can be named, and it is warned of."""
    text = text_of("kubernetes").replace("[tls]\n", '[tls]\ningress_class = "traefik"\ningress_namespace = "traefik"\n')
    site = reading.parse(text)
    from deploy.render.targets import rendered

    out = {each.path: each.text for each in rendered(site)}
    assert "ingressClassName: traefik" in out["cluster/ingress.yaml"]
    assert "kubernetes.io/metadata.name: traefik" in out["cluster/network-policies.yaml"]
    assert any("class traefik must be one that follows it" in each for each in site.warnings())


def test_the_secret_is_made_of_lines_without_their_ends() -> None:
    """A file a secret would keep the newline that `openssl rand -hex 32 > FILE` ends with, and no header takes one."""
    said = made("kubernetes")["cluster/apply.sh"].text
    assert "--from-env-file=secrets.env" in said and "--from-file" not in said
    for chart in ("milvus-operator 1.3.6", "redis-operator 0.26.1", "prometheus-adapter 5.3.0"):
        assert chart in said
