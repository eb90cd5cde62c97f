# For the setup scripts to source: `need PACKAGE ...` installs those Debian packages that are not there yet. When all
# are there it is done in a moment and needs neither the network nor root.

need() {
    missing=
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed \
            || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || { echo "setup: run as root to install$missing" >&2; exit 1; }
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || { echo "setup: cannot read package lists; check the network and the apt sources" >&2; exit 1; }
    echo "setup: installing$missing"
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing >/dev/null \
        || { echo "setup: cannot install$missing" >&2; exit 1; }
}
