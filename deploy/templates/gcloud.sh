#!/bin/sh
# Firewall rules of the machine @INSTANCE@, by the tag @TAG@: named sources only. A second run changes nothing.
set -eu
wanted=

allow() { # NAME PORT NETWORKS
    wanted="$wanted $1 "
    if gcloud compute firewall-rules describe "$1" >/dev/null 2>&1; then
        gcloud compute firewall-rules update "$1" --rules="tcp:$2" --source-ranges="$3" --target-tags='@TAG@' --quiet
    else
        gcloud compute firewall-rules create "$1" --network='@NETWORK@' --direction=INGRESS --action=ALLOW --priority=1000 \
            --rules="tcp:$2" --source-ranges="$3" --target-tags='@TAG@' --quiet
    fi
}

@RULES@

# Before the rules that a default network comes with (priority 65534: SSH and RDP from everywhere).
deny='@TAG@-deny'
wanted="$wanted $deny "
if ! gcloud compute firewall-rules describe "$deny" >/dev/null 2>&1; then
    gcloud compute firewall-rules create "$deny" --network='@NETWORK@' --direction=INGRESS --action=DENY --priority=60000 \
        --rules=all --source-ranges=0.0.0.0/0 --target-tags='@TAG@' --quiet
fi
gcloud compute instances add-tags '@INSTANCE@' --zone='@ZONE@' --tags='@TAG@' --quiet

# What the settings no longer name.
gcloud compute firewall-rules list --filter='targetTags:@TAG@' --format='value(name)' | while read -r name; do
    case "$wanted" in *" $name "*) ;; *) gcloud compute firewall-rules delete "$name" --quiet ;; esac
done
