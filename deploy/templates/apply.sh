#!/bin/sh
# Applies this folder to the cluster that kubectl speaks to, Kubernetes @OLDEST@ or later; nodes with GPUs have NVIDIA's device plugin.
# Before: secrets.env, made from secrets.env.example (mode 0600), and by helm, each into the namespace of its name, which the
# network policies know:
@CHARTS@
set -eu
cd "$(dirname "$0")"

kubectl apply -f namespace.yaml
# A secret is made once: changing one is a decision of its own.
if ! kubectl -n @NAMESPACE@ get secret @SECRET@ >/dev/null 2>&1; then
    if [ ! -f secrets.env ] || grep -q '=$' secrets.env; then
        echo "copy secrets.env.example to secrets.env and fill in every value" >&2
        exit 1
    fi
    kubectl -n @NAMESPACE@ create secret generic @SECRET@ --from-env-file=secrets.env
fi
for file in stores/milvus.yaml stores/redis.yaml; do
    if [ -f "$file" ]; then kubectl apply -f "$file"; fi
done
kubectl apply -k .
