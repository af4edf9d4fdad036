if ! kubectl -n @NAMESPACE@ get secret @NAME@ >/dev/null 2>&1; then
    echo "no certificate: until there is one, @NAME@ is answered with the controller's own. Run:" >&2
    echo "  @MADE@" >&2
fi
