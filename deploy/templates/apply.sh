#!/bin/sh
# Applies this folder to the cluster that kubectl speaks to. Before: the operators of Milvus (chart milvus-operator) and of Redis
# (chart redis-operator) where stores/ names them, and a folder secrets/ with one file a secret, its name the secret's key.
set -eu
cd "$(dirname "$0")"

kubectl apply -f namespace.yaml
# A secret is made once: changing one is a decision of its own.
if ! kubectl -n @NAMESPACE@ get secret @SECRET@ >/dev/null 2>&1; then
    kubectl -n @NAMESPACE@ create secret generic @SECRET@ @LITERALS@
fi
for file in stores/milvus.yaml stores/redis.yaml; do
    if [ -f "$file" ]; then kubectl apply -f "$file"; fi
done
kubectl apply -k .
