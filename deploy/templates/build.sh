#!/bin/sh
# Builds the images of this deployment. Usage: build.sh REPOSITORY_ROOT [SERVICE…]; HF_TOKEN_FILE names a file with a hub token.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=${1:?usage: build.sh REPOSITORY_ROOT [SERVICE…]}
shift
wanted=" $* "
secret=
if [ -n "${HF_TOKEN_FILE:-}" ]; then secret="--secret=id=hf_token,src=$HF_TOKEN_FILE"; fi

image() { # SERVICE DOCKERFILE TAG [BUILD ARGUMENT…]
    service=$1 file=$2 tag=$3
    shift 3
    case "$wanted" in "  " | *" $service "*) ;; *) return 0 ;; esac
    # shellcheck disable=SC2086 # an empty secret is no argument
    DOCKER_BUILDKIT=1 docker build -f "$here/$file" -t "$tag" $secret "$@" "$root"
}

@IMAGES@
