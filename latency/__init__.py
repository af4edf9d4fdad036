"""Why was it slow: stages of stored queries joined with what machines and services did meanwhile."""
