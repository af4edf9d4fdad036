#!/bin/sh
# Denies everything but what is named below. Run as root; a second run changes nothing. `ufw.sh docker` sets Docker's part alone.
set -eu

# NETWORK PORT SERVICE:WHO
rules() {
    cat <<'RULES'
@RULES@
RULES
}

# The same for ports that Docker publishes: packets to them pass by ufw, through the chain DOCKER-USER.
containers() {
    cat <<'RULES'
@CONTAINERS@
RULES
}
published='@PUBLISHED@'

docker_rules() {
    for tables in iptables ip6tables; do
        command -v "$tables" >/dev/null || continue
        $tables -w -nL DOCKER-USER >/dev/null 2>&1 || continue
        # Filled under another name and then swapped in: at no moment is the door open.
        $tables -w -N RAGDECK-NEW 2>/dev/null || $tables -w -F RAGDECK-NEW
        containers | while read -r network port who; do
            case "$network" in "#"*) continue ;; esac
            case "$tables:$network" in iptables:*:* | ip6tables:*.*.*.*) continue ;; esac
            $tables -w -A RAGDECK-NEW -s "$network" -p tcp -m conntrack --ctstate DNAT --ctdir ORIGINAL \
                --ctorigdstport "$port" -m comment --comment "ragdeck:$who" -j RETURN
        done
        for port in $published; do
            # Only what Docker redirected from an address of the machine: containers reach each other as they did.
            $tables -w -A RAGDECK-NEW -p tcp -m conntrack --ctstate DNAT --ctdir ORIGINAL --ctorigdstport "$port" -j DROP
        done
        $tables -w -I DOCKER-USER 1 -j RAGDECK-NEW
        while $tables -w -D DOCKER-USER -j RAGDECK 2>/dev/null; do :; done
        $tables -w -F RAGDECK 2>/dev/null || true
        $tables -w -X RAGDECK 2>/dev/null || true
        $tables -w -E RAGDECK-NEW RAGDECK
    done
}

ufw_rules() {
    ufw default deny incoming >/dev/null
    ufw default allow outgoing >/dev/null
    rules | while read -r network port who; do
        case "$network" in "#"*) continue ;; esac
        ufw allow proto tcp from "$network" to any port "$port" comment "ragdeck:$who" >/dev/null
    done
    # What is no longer named, last one first: each deletion moves the numbers behind it.
    ufw status numbered | sed -n 's/^\[ *\([0-9]*\)\] *\([0-9]*\)\/tcp.* ALLOW IN *\([^ ]*\) .*# ragdeck:.*/\1 \2 \3/p' |
        sort -rn | while read -r number port network; do
            rules | grep -q "^$network $port " || ufw --force delete "$number" >/dev/null
        done
    ufw --force enable >/dev/null
}

if [ "${1:-}" != docker ]; then ufw_rules; fi
docker_rules
