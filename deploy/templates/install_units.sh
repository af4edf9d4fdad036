#!/bin/sh
# Run as root on the machine, in this folder, after the program is in @INSTALL@ with its .venv. A second run changes nothing.
set -eu
cd "$(dirname "$0")"
units='@UNITS@'

install -d -m 0755 /etc/sysusers.d @CONFIG@
install -m 0644 sysusers.conf /etc/sysusers.d/ragdeck.conf
systemd-sysusers /etc/sysusers.d/ragdeck.conf
install -d -m 0750 -o ragdeck -g ragdeck @DATA@
for unit in $units; do
    name=${unit#ragdeck-}
    name=${name%.service}
    if [ ! -f "@CONFIG@/$name.env" ]; then
        install -m 0600 "$name.env.example" "@CONFIG@/$name.env"
        echo "fill in @CONFIG@/$name.env and run this again" >&2
        missing=1
    fi
    chmod 0600 "@CONFIG@/$name.env"
    if [ -f "$name.toml" ]; then install -m 0644 "$name.toml" "@CONFIG@/$name.toml"; fi
    install -m 0644 "$unit" "/etc/systemd/system/$unit"
done
# Lets the dashboard restart the other units; polkit before 0.106 knows no such rules, and leaves it as it was.
if [ -f polkit.rules ]; then
    [ -d /etc/polkit-1/rules.d ] || install -d -m 0755 /etc/polkit-1/rules.d
    install -m 0644 polkit.rules /etc/polkit-1/rules.d/50-ragdeck.rules
fi
systemctl daemon-reload
[ -z "${missing:-}" ] || exit 1
for unit in $units; do
    systemctl enable "$unit"
    systemctl restart "$unit"
done
