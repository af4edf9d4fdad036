if ! kubectl get --raw /apis/custom.metrics.k8s.io/v1beta1 >/dev/null 2>&1; then
    echo "nothing serves custom metrics: everything runs with its least replicas and does not grow. Install prometheus-adapter" >&2
    echo "with stores/prometheus-adapter-values.yaml; kubectl describe hpa says ScalingActive True then." >&2
fi
