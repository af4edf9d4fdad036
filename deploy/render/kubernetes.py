"""A Kustomize folder a cluster: namespace, deployments with whole GPUs, probes, budgets, scaling by queues, network policies.

Milvus and Redis come from their own operators: only their resources are here. Secrets are named, never made. Every field is
known to Kubernetes `OLDEST` and later.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from deploy.planner import flags
from deploy.render import apps, docker
from deploy.render.files import File, commented, dumped, yaml_file
from deploy.render.kubernetes_network import ingress, part_of, policies
from deploy.render.schema import APPS, STORES, VLLM, Host, Service
from deploy.render.site import Site
from deploy.render.templates import filled, template

OLDEST = "1.29"
SECRET = "ragdeck-secrets"
# Requests: what it needs at the least. Limits only of memory: a processor limit slows a model for nothing.
MEMORY = {"dashboard": ("1Gi", "4Gi"), "api": ("1Gi", "4Gi"), "gpu-server": ("4Gi", "16Gi")}
MODEL_MEMORY = ("8Gi", "64Gi")
CPU = {"dashboard": "500m", "api": "500m", "gpu-server": "2"}
START_TRIES = {"dashboard": 30, "api": 30, "gpu-server": 60}  # of 10 s each
MODEL_START_TRIES = 180
TRY_SECONDS = 10
PULL_SECONDS = 900  # until a container is there at all: images of model servers have 10 GB and more
# The GPU server answers what it has for 65 s at the most, then ends within 10; uvicorn waits 10 s for the API's requests.
END_SECONDS = {"gpu-server": 90, "dashboard": 40, "api": 40}
LEAVE_SECONDS = 5  # a pod that ends is still asked until every node has heard of it
# What waits, as the adapter names it: a name of its own for each series, for of two rules with one name it keeps the last.
WAITING_METRICS = {"te_queue_size": "ragdeck_texts_waiting", "vllm:num_requests_waiting": "ragdeck_requests_waiting"}
# Charts whose resource definitions and values ours were checked against: name, version, project.
MILVUS_CHART = "milvus-operator 1.3.6 (zilliztech/milvus-operator)"
REDIS_CHART = "redis-operator 0.26.1 (OT-CONTAINER-KIT/redis-operator)"
ADAPTER_CHART = "prometheus-adapter 5.3.0 (prometheus-community), with stores/prometheus-adapter-values.yaml"
WAITING = {"gpu-server": "64", "llm": "4", "embedding": "32", "ocr": "4", "whisper": "4"}  # texts, or requests, a replica


def files(site: Site) -> Iterator[File]:
    for host in site.clusters:
        here = site.on(host.name, "kubernetes")
        ours = [each for each in here if each.role not in STORES]
        named: list[File] = [yaml_file(site, f"{host.name}/namespace.yaml", _namespace(site))]
        named += [yaml_file(site, f"{host.name}/{each.name}.yaml", *_workload(site, each)) for each in ours]
        named.append(yaml_file(site, f"{host.name}/network-policies.yaml", *policies(site, host)))
        if site.deployment.tls:
            named.append(yaml_file(site, f"{host.name}/ingress.yaml", *ingress(site, host)))
        yield from named
        configured = [each for each in ours if each.role in APPS]
        yield from (apps.settings_file(site, each, f"{host.name}/{each.name}.toml") for each in configured)
        yield commented(site, f"{host.name}/probe.py", template("probe.py"))
        yield yaml_file(site, f"{host.name}/kustomization.yaml", _kustomization(site, host, named, configured))
        yield from _stores(site, host, here)


def _namespace(site: Site) -> dict[str, Any]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    # The operators' pods are not ours to harden: they get the middle level.
    if site.role("milvus") or site.role("redis"):
        labels = {"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": site.deployment.name, "labels": labels}}


def _kustomization(site: Site, host: Host, named: list[File], configured: list[Service]) -> dict[str, Any]:
    generated: list[dict[str, Any]] = [{"name": "probe", "files": ["probe.py"]}]
    generated += [{"name": f"{each.name}-settings", "files": [f"dashboard.toml={each.name}.toml"]} for each in configured]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": site.deployment.name,
        "resources": [each.path.partition("/")[2] for each in named],
        "configMapGenerator": generated,
    }


def labels(service: Service) -> dict[str, str]:
    """What selectors go by."""
    return {"app.kubernetes.io/name": service.name, "app.kubernetes.io/component": service.role}


def _workload(site: Site, service: Service) -> Iterator[dict[str, Any]]:
    yield _deployment(site, service)
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service.name, "labels": labels(service)},
        "spec": {"selector": labels(service), "ports": [{"name": "http", "port": service.listens_on, "targetPort": "http"}]},
    }
    if _claim(site, service):
        size = {"requests": {"storage": f"{_claimed_gib(site, service)}Gi"}}
        # One pod at a time (Recreate) needs a disk that one node mounts; only replicas one that all do, which few classes offer.
        access = "ReadWriteMany" if service.most_replicas > 1 else "ReadWriteOnce"
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": _claim(site, service)},
            "spec": {"accessModes": [access], "resources": size},
        }
    if service.most_replicas > 1:
        yield _budget(service)
    if service.most_replicas > service.replicas:
        yield _scaler(service)


def _budget(service: Service) -> dict[str, Any]:
    """One replica away at a time. Where there is one, a budget could only block the drain of its node, so it has none; and pods
    that are not well, or still load a model, never block one."""
    spec = {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": {"matchLabels": labels(service)}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": service.name}, "spec": spec}


def _claimed_gib(site: Site, service: Service) -> int:
    """For models twice what the plan loads, in steps of 10: what is quantised at the start lies there in 16 bits."""
    whole = sum(each.need.weights.value_bytes * each.service.split for each in site.placed(service))
    return 20 if service.role in APPS else 20 + 10 * -(-2 * whole // (10 << 30))


def _scaler(service: Service) -> dict[str, Any]:
    name = WAITING_METRICS["vllm:num_requests_waiting" if service.role in VLLM else "te_queue_size"]
    metric = {
        "type": "Pods",
        "pods": {"metric": {"name": name}, "target": {"type": "AverageValue", "averageValue": WAITING[service.role]}},
    }
    # A model takes minutes to load: grow at once, shrink slowly.
    behavior = {
        "scaleUp": {"stabilizationWindowSeconds": 30, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]},
        "scaleDown": {"stabilizationWindowSeconds": 900, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 300}]},
    }
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": service.name}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": service.name},
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": service.replicas,
            "maxReplicas": service.most_replicas,
            "metrics": [metric],
            "behavior": behavior,
        },
    }


def _claim(site: Site, service: Service) -> str | None:
    """The volume that outlives its pods: an app's data, or the models where they are not in the image."""
    if service.role in APPS:
        return f"{service.name}-data"
    return f"{service.name}-models" if site.hub_models(service) and not site.deployment.offline else None


def _deployment(site: Site, service: Service) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": END_SECONDS.get(service.role, 60),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": docker.USER,
            "runAsGroup": docker.USER,
            "fsGroup": docker.USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(site, service)],
        "volumes": _volumes(site, service),
    }
    host = site.host(service)
    if site.gpus_each(service):
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        pod |= {"nodeSelector": host.node_labels} if host.node_labels else {}
        pod |= {"runtimeClassName": host.runtime_class} if host.runtime_class else {}
    if service.most_replicas > 1:
        apart = {"labelSelector": {"matchLabels": labels(service)}, "maxSkew": 1, "topologyKey": "kubernetes.io/hostname"}
        pod["topologySpreadConstraints"] = [{**apart, "whenUnsatisfiable": "ScheduleAnyway"}]
    spec: dict[str, Any] = {} if service.most_replicas > service.replicas else {"replicas": service.replicas}
    # An app has one disk, and a GPU that is full has no room for a second pod beside the first.
    lone = service.role in APPS or service.most_replicas == 1
    spec["strategy"] = (
        {"type": "Recreate"} if lone else {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    )
    spec |= {
        # without it a model that loads for more than ten minutes is told as a failed rollout
        "progressDeadlineSeconds": _start_tries(service) * TRY_SECONDS + PULL_SECONDS,
        "selector": {"matchLabels": labels(service)},
        "template": {"metadata": {"labels": {**labels(service), **part_of(site)}}, "spec": pod},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": service.name, "labels": labels(service)},
        "spec": spec,
    }


def _container(site: Site, service: Service) -> dict[str, Any]:
    placed = site.placed(service)
    found: dict[str, Any] = {"name": service.name, "image": docker.image(site, service), "imagePullPolicy": "IfNotPresent"}
    gpus: dict[str, Any] = flags.kubernetes_container(site.plans[service.host], placed[0]) if placed else {}
    if service.role in VLLM:
        found |= {"command": ["vllm", "serve"], "args": gpus["args"]}
    elif service.role == "gpu-server":
        found |= {"command": ["python", "-m", "gpu_server"], "args": site.arguments(service)}
    else:
        found["command"] = ["python", "app.py"] if service.role == "dashboard" else ["python", "-m", "rag", "serve"]
    found["ports"] = [{"name": "http", "containerPort": service.listens_on}]
    found["env"] = _environment(site, service)
    least, most = MEMORY.get(service.role, MODEL_MEMORY)
    limits = {"memory": most, **(gpus["resources"]["limits"] if gpus else {})}
    found["resources"] = {"requests": {"cpu": CPU.get(service.role, "4"), "memory": least}, "limits": limits}
    found |= _probes(site, service)
    if service.most_replicas > 1:
        found["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", str(LEAVE_SECONDS)]}}}
    found["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    found["volumeMounts"] = _mounts(site, service)
    return found


def _environment(site: Site, service: Service) -> list[dict[str, Any]]:
    plain = apps.variables(site, service, "/etc/ragdeck/dashboard.toml", "/var/lib/ragdeck")
    if service.role in VLLM:
        plain |= {"HF_HOME": "/opt/models", "HOME": "/tmp", "USER": "ragdeck"}
    secret = apps.secrets(site, service)
    redis = site.role("redis")
    if redis and redis.token and service.role in APPS:
        secret["REDIS_PASSWORD"] = redis.token
    found: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in plain.items()]
    found += [{"name": name, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": key}}} for name, key in secret.items()]
    url = apps.redis_url(site, service, "$(REDIS_PASSWORD)")
    return [*found, {"name": "REDIS_URL", "value": url}] if url else found


def _probes(site: Site, service: Service) -> dict[str, Any]:
    """Started and ready when the model has answered; alive while the server answers at all.

    An app is neither ended nor kept from starting because a store or a model server is away: what counts there is its port. The
    dashboard is ready even then, because it is where one looks; the API is not.
    """
    path = "/_stcore/health" if service.role == "dashboard" else docker.HEALTH_PATHS.get(service.role, "/health")
    asked: dict[str, Any] = {"httpGet": {"path": path, "port": "http"}}
    started = alive = {"tcpSocket": {"port": "http"}} if service.role in APPS else asked
    if service.role in VLLM:
        started = {"exec": {"command": ["python3", "/opt/ragdeck/probe.py", *docker.probe(site, service)]}}
    tries = {"periodSeconds": TRY_SECONDS, "timeoutSeconds": 25, "failureThreshold": _start_tries(service)}
    return {
        "startupProbe": {**started, **tries},
        "readinessProbe": {**asked, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**alive, "periodSeconds": 20, "timeoutSeconds": 10, "failureThreshold": 6},
    }


def _start_tries(service: Service) -> int:
    return START_TRIES.get(service.role, MODEL_START_TRIES)


def _volumes(site: Site, service: Service) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    if service.role in VLLM:
        found.append({"name": "probe", "configMap": {"name": "probe"}})
    if service.role in APPS:
        found.append({"name": "settings", "configMap": {"name": f"{service.name}-settings"}})
    if service.split > 1:
        found.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}})
    claim = _claim(site, service)
    return [*found, {"name": "kept", "persistentVolumeClaim": {"claimName": claim}}] if claim else found


def _mounts(site: Site, service: Service) -> list[dict[str, Any]]:
    places: dict[str, dict[str, Any]] = {
        "tmp": {"mountPath": "/tmp"},
        "probe": {"mountPath": "/opt/ragdeck", "readOnly": True},
        "settings": {"mountPath": "/etc/ragdeck", "readOnly": True},
        "shm": {"mountPath": "/dev/shm"},
        "kept": {"mountPath": "/var/lib/ragdeck" if service.role in APPS else "/opt/models"},
    }
    return [{"name": each["name"], **places[each["name"]]} for each in _volumes(site, service)]


# ---------------------------------------------------------------------------------------------- what others' operators run


def _stores(site: Site, host: Host, here: tuple[Service, ...]) -> Iterator[File]:
    """Resources for the operators, applied after the operators are there; scaling by our metrics needs the adapter's rules."""
    for service in here:
        if service.role == "milvus":
            yield yaml_file(site, f"{host.name}/stores/milvus.yaml", _milvus(site, service))
        elif service.role == "redis":
            yield yaml_file(site, f"{host.name}/stores/redis.yaml", _redis(site, service))
    scaled = any(each.most_replicas > each.replicas for each in here)
    if scaled:
        yield commented(site, f"{host.name}/stores/prometheus-adapter-values.yaml", dumped(_adapter(site)))
    names = sorted({name for each in here for name in apps.secrets(site, each).values()})
    lines = "".join(f"{name}=\n" for name in names)
    yield commented(site, f"{host.name}/secrets.env.example", f"# For apply.sh: openssl rand -hex 32 for each\n{lines}", 0o600)
    charts = [{"milvus": MILVUS_CHART, "redis": REDIS_CHART}[each.role] for each in here if each.role in ("milvus", "redis")]
    charts += [ADAPTER_CHART] if scaled else []
    lines = "\n".join(f"#   {each}" for each in charts) or "#   nothing"
    values = {"namespace": site.deployment.name, "secret": SECRET, "charts": lines, "oldest": OLDEST}
    text = filled("apply.sh", **values) + "".join(_warnings(site, host, scaled))
    yield commented(site, f"{host.name}/apply.sh", text, 0o755)


def _warnings(site: Site, host: Host, scaled: bool) -> Iterator[str]:
    """What works without, and less well than one thinks."""
    tls, namespace = site.deployment.tls, site.deployment.name
    for service in site.on(host.name, "kubernetes"):
        if tls and service.role in APPS and (tls.dashboard if service.role == "dashboard" else tls.api):
            name = f"{service.name}-tls"
            made = shlex.join(["kubectl", "-n", namespace, "create", "secret", "tls", name, f"--cert={tls.certificate}"])
            yield filled("apply_tls.sh", namespace=namespace, name=name, made=f"{made} --key={shlex.quote(tls.key)}")
    if scaled:
        yield template("apply_scaling.sh")


def _milvus(site: Site, service: Service) -> dict[str, Any]:
    """For the Milvus operator (zilliztech/milvus-operator), API milvus.io/v1beta1. It serves at NAME-milvus, on 19530: a port in
    `config` it takes out again. Its queue is on the pod's own disk, lost with the pod, unless it is given a volume."""
    components = {"image": site.deployment.images.milvus, "standalone": {"replicas": 1, "serviceType": "ClusterIP"}}
    kept = {"inCluster": {"deletionPolicy": "Retain", "pvcDeletion": False}}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}
    queue = {"persistence": {"enabled": True, "pvcDeletion": False, "persistentVolumeClaim": {"spec": claim}}}
    return {
        "apiVersion": "milvus.io/v1beta1",
        "kind": "Milvus",
        "metadata": {"name": service.name, "namespace": site.deployment.name},
        "spec": {
            "mode": "standalone",
            "components": components,
            "config": {},
            "dependencies": {"etcd": kept, "storage": kept, "msgStreamType": "rocksmq", "rocksmq": queue},
        },
    }


def _redis(site: Site, service: Service) -> dict[str, Any]:
    """For the Redis operator of OT-CONTAINER-KIT, API redis.redis.opstreelabs.in/v1beta2. It serves at NAME. The password is set
    by the entry point of the project's own image, as user 1000: any other image would serve without one."""
    claim = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}}
    return {
        "apiVersion": "redis.redis.opstreelabs.in/v1beta2",
        "kind": "Redis",
        "metadata": {"name": service.name, "namespace": site.deployment.name},
        "spec": {
            "kubernetesConfig": {
                "image": site.deployment.images.redis_operated,
                "imagePullPolicy": "IfNotPresent",
                "redisSecret": {"name": SECRET, "key": service.token},
            },
            "storage": {"volumeClaimTemplate": claim},
            "podSecurityContext": {"runAsUser": 1000, "fsGroup": 1000},
        },
    }


def _adapter(site: Site) -> dict[str, Any]:
    """Values for the chart of prometheus-adapter: what waits, of our server and of vLLM, as metrics of pods."""
    about = {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}}
    found = []
    for metric, name in WAITING_METRICS.items():
        found.append(
            {
                "seriesQuery": f'{{__name__="{metric}",namespace="{site.deployment.name}",pod!=""}}',
                "resources": about,
                "name": {"as": name},
                "metricsQuery": "sum(avg_over_time(<<.Series>>{<<.LabelMatchers>>}[1m])) by (<<.GroupBy>>)",
            }
        )
    return {"rules": {"default": False, "custom": found}}
