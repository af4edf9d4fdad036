"""Every file of a deployment from one settings file, so that ports, models and flags never disagree.

    schema      what the settings file may say
    reading     the file, and what is wrong with it, by key and line
    site        who talks to whom, at which address; what each GPU carries (by the planner)
    apps        settings, variables and secrets of our own processes
    files       what a rendered file is, its header, writing and checking a folder of them
    templates   texts with @NAMES@ to fill
    systemd docker compose kubernetes kubernetes_network firewall proxy monitoring steps     a target each: site -> files

A target is a pure function of the site. Knows no clock and asks nobody: the same settings give the same bytes.
"""
