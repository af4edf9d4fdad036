#!/usr/bin/env bash
# One VM with one L4 on Google Cloud for the GPU server and vLLM: quota and zone checked, machine made, driver and container
# toolkit verified, two ports opened to named sources. Without --apply it only says what it would do; looking asks nothing but reads.
set -euo pipefail

usage() {
  cat <<'USAGE'
provision_gce.sh --project P --sources CIDR[,CIDR…] [options]

  --project P        the Google Cloud project
  --sources CIDRS    who may reach the GPU server (8000) and vLLM (8001); 0.0.0.0/0 is refused
  --zones Z[,Z…]     tried in this order (us-central1-a,us-central1-c)
  --name N           the VM's name (rag-gpu)
  --network N        the VPC network (default)
  --disk-gb N        size of the boot disk, SSD (120)
  --machine-type T   g2-standard-4 (one L4)
  --image-family F   pytorch-2-9-cu129-ubuntu-2404-nvidia-580
  --image-project P  deeplearning-platform-release
  --apply            do it; without it every changing command is printed and not run
  --offline          ask the cloud nothing at all; print every command
  -h, --help         this text

Exit codes: 0 done, 1 something is missing (quota, zone, driver), 2 wrong usage.
USAGE
}

fail() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf '       %s\n' "$2" >&2; exit 1; }
wrong() { printf 'error: %s\n' "$1" >&2; usage >&2; exit 2; }
step() { printf '\n== %s\n' "$1" >&2; }
quoted() { # a command as one would type it
  local word line=''
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then line+="$word "; else line+="${word@Q} "; fi
  done
  printf '%s' "${line% }"
}

project='' sources='' zones='us-central1-a,us-central1-c' name='rag-gpu' network='default' disk_gb=120
machine_type='g2-standard-4' image_family='pytorch-2-9-cu129-ubuntu-2404-nvidia-580' image_project='deeplearning-platform-release'
apply=no offline=no

while [ $# -gt 0 ]; do
  case "$1" in
    --apply) apply=yes; shift; continue ;;
    --offline) offline=yes; shift; continue ;;
    -h | --help) usage; exit 0 ;;
    --*) [ $# -ge 2 ] || wrong "$1 needs a value" ;;
    *) wrong "unknown argument $1" ;;
  esac
  case "$1" in
    --project) project=$2 ;;
    --sources) sources=$2 ;;
    --zones) zones=$2 ;;
    --name) name=$2 ;;
    --network) network=$2 ;;
    --disk-gb) disk_gb=$2 ;;
    --machine-type) machine_type=$2 ;;
    --image-family) image_family=$2 ;;
    --image-project) image_project=$2 ;;
    *) wrong "unknown option $1" ;;
  esac
  shift 2
done

[ -n "$project" ] || wrong '--project is missing'
[ -n "$sources" ] || wrong '--sources is missing: nothing is opened to everybody'
case "$sources" in *.*:* | *:*.*) wrong '--sources mixes IPv4 and IPv6, which a rule of Google Cloud does not take' ;; esac
case ",$sources," in *,0.0.0.0/0,* | *,::/0,*) wrong '--sources names the whole world' ;; esac
[[ $sources =~ ^[0-9a-fA-F:./,]+$ ]] || wrong '--sources is no list of addresses in CIDR form'
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] || wrong "--name $name is no name of a VM"
if ! [[ $disk_gb =~ ^[0-9]{1,5}$ ]] || [ "$disk_gb" -lt 50 ]; then
  wrong '--disk-gb is a number from 50 on: image, models and containers'
fi
if [ "$apply" = yes ] && [ "$offline" = yes ]; then wrong '--apply and --offline exclude each other'; fi
[ "$offline" = yes ] || command -v gcloud >/dev/null || fail 'gcloud is not installed' 'Install the Google Cloud CLI and run: gcloud auth login'

# Reads are run unless --offline; changes only with --apply.
look() { printf '+ %s\n' "$(quoted "$@")" >&2; [ "$offline" = yes ] || "$@"; }
change() {
  printf '+ %s\n' "$(quoted "$@")" >&2
  [ "$apply" = no ] || "$@"
}

step '1. GPU quota'
region=${zones%%,*}
region=${region%-*}
values='value(quotas.metric,quotas.limit,quotas.usage)'
enough() { # metric, what limits it, and the lines of all quotas: metric, limit, usage
  [ "$offline" = no ] || return 0
  awk -v metric="$1" '$1 == metric { found = 1; if ($2 - $3 >= 1) free = 1 } END { exit !(found && free) }' <<<"$3" ||
    fail "$1 leaves no GPU $2" 'Ask for one more under IAM & Admin > Quotas (minutes to days), or choose other --zones.'
}
quotas=$(look gcloud compute project-info describe --project "$project" --flatten='quotas[]' --format="$values")
enough GPUS_ALL_REGIONS 'in this project' "$quotas"
quotas=$(look gcloud compute regions describe "$region" --project "$project" --flatten='quotas[]' --format="$values")
enough NVIDIA_L4_GPUS "in $region" "$quotas"

step '2. A zone that has the L4'
zone=''
IFS=, read -r -a wanted <<<"$zones"
for each in "${wanted[@]}"; do
  found=$(look gcloud compute accelerator-types list --project "$project" --filter="zone:$each AND name=nvidia-l4" --format='value(name)')
  if [ "$offline" = yes ] || [ -n "$found" ]; then zone=$each; break; fi
done
[ -n "$zone" ] || fail "none of $zones has an L4" 'gcloud compute accelerator-types list --filter=name=nvidia-l4 lists the zones that do.'
printf 'zone: %s\n' "$zone" >&2

step '3. The image'
found=$(look gcloud compute images describe-from-family "$image_family" --project "$image_project" --format='value(name)') || found=''
if [ "$offline" = no ] && [ -z "$found" ]; then
  fail "$image_project has no image family $image_family" \
    "Families end: gcloud compute images list --project $image_project --no-standard-images shows what there is; name one with --image-family."
fi

step '4. The VM'
exists=$(look gcloud compute instances list --project "$project" --filter="name=$name AND zone:$zone" --format='value(name)')
if [ -n "$exists" ]; then
  printf '%s is there already: left as it is\n' "$name"
else
  change gcloud compute instances create "$name" --project "$project" --zone "$zone" --machine-type "$machine_type" \
    --image-family "$image_family" --image-project "$image_project" --network "$network" \
    --boot-disk-size "${disk_gb}GB" --boot-disk-type pd-ssd --maintenance-policy TERMINATE --provisioning-model STANDARD \
    --metadata install-nvidia-driver=True --tags rag-gpu --no-service-account --no-scopes
fi

step '5. Firewall: named sources only'
rule="$name-models"
exists=$(look gcloud compute firewall-rules list --project "$project" --filter="name=$rule" --format='value(name)')
if [ -n "$exists" ]; then
  change gcloud compute firewall-rules update "$rule" --project "$project" --source-ranges "$sources" --rules tcp:8000,tcp:8001
else
  change gcloud compute firewall-rules create "$rule" --project "$project" --network "$network" --direction INGRESS \
    --action ALLOW --rules tcp:8000,tcp:8001 --source-ranges "$sources" --target-tags rag-gpu
fi

# On the VM. The driver of the image family installs itself at the first start, which takes minutes.
on_vm() { change gcloud compute ssh "$name" --project "$project" --zone "$zone" --command "$1"; }

step '6. The driver'
# shellcheck disable=SC2016  # expanded on the VM
on_vm 'for try in $(seq 60); do nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader && exit 0; sleep 10; done; echo "no driver after ten minutes: sudo /opt/deeplearning/install-driver.sh" >&2; exit 1'

step '7. The container toolkit'
on_vm 'command -v docker >/dev/null || { echo "Docker is missing on this image" >&2; exit 1; }; command -v nvidia-ctk >/dev/null || { echo "install nvidia-container-toolkit, see docs/provisioning.md" >&2; exit 1; }; sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker && sudo docker info --format "{{json .Runtimes}}" | grep -q nvidia'

step '8. What comes next'
cat <<NEXT
GPU server and vLLM: docs/provisioning.md, from "Servers" on. Then, on the machine of the dashboard:
  GPU_SERVER_URL=http://ADDRESS:8000 VLLM_BASE_URL=http://ADDRESS:8001 python -m deploy validate
with GPU_SERVER_TOKEN and VLLM_API_KEY, the keys of the two, in its .env.
NEXT
[ "$apply" = yes ] || printf '\nNothing was changed: add --apply.\n'
