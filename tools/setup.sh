#!/usr/bin/env bash
# Installs what latentvk needs and is not there yet: system packages (apt), a Vulkan driver, uv in .tools/uv, and the
# Python environment in .venv. A second run finds everything in place and ends within a second.
#
# tools/setup.sh --tests             also Vulkan's validation layers, which the device tests run under
# tools/setup.sh --system            only the system packages (the tests' too) and the driver: for root, where users have
#                                    no sudo
# LATENTVK_PYTHON=/path/to/python3   the interpreter to use, 3.11 or newer, with its C headers
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

readonly UV_VERSION=0.13.8
readonly SCOPE=${1:-}
# Root must leave no file in a user's checkout that the user cannot write.
if [ "$SCOPE" = --system ]; then LOG=/var/log/latentvk-setup.log; else LOG=.tools/setup.log; fi
readonly LOG
readonly STAMP=.venv/latentvk-setup
readonly COMPANION=vkbackend/companion/liblatentvk_companion.so # see hatch_build.py
readonly OS_RELEASE=${LATENTVK_OS_RELEASE:-/etc/os-release} # another file only in tests

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# ---- Python -----------------------------------------------------------------------------------------------------

python_is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The system's interpreter comes first: apt can give it the headers that building Kompute needs.
find_python() {
    local candidate
    if [ -n "${LATENTVK_PYTHON:-}" ]; then
        python_is_new_enough "$LATENTVK_PYTHON" ||
            die "LATENTVK_PYTHON=$LATENTVK_PYTHON is not a Python of 3.11 or newer; name one that is, or unset it"
        printf '%s\n' "$LATENTVK_PYTHON"
        return
    fi
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        if have "$candidate" && python_is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
}

python_has_headers() {
    "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
}

# ---- system packages --------------------------------------------------------------------------------------------

has_header() { printf '#include <%s>\n' "$1" | g++ -E -x c++ - >/dev/null 2>&1; }

has_validation() { "$1" tools/vulkan_probe.py --layer VK_LAYER_KHRONOS_validation >/dev/null 2>&1; }

# Debian's names of what is missing. Looks for the thing itself, not for the package: it may have come another way.
missing_packages() {
    local python=$1
    have g++ || echo g++
    have cc || [ -n "${CC:-}" ] || echo gcc
    have make || echo make
    have glslangValidator || echo glslang-tools
    have spirv-val || echo spirv-tools
    has_header vulkan/vulkan.h || echo libvulkan-dev
    has_header fmt/core.h || echo libfmt-dev
    if [ -z "$python" ]; then
        echo python3 python3-dev python3-venv
        [ -z "$SCOPE" ] || echo vulkan-validationlayers
        return
    fi
    python_has_headers "$python" || echo python3-dev
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    [ -z "$SCOPE" ] || has_validation "$python" || echo vulkan-validationlayers
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

require_apt_and_root() {
    local packages=$*
    have apt-get || die "this system has no apt-get; install what these Debian packages hold, then run make again: $packages"
    if [ "$(id -u)" = 0 ]; then return; fi
    have sudo || die "root must install $packages and there is no sudo; as root run 'make system' here, then run make again"
    sudo -v || die "root must install $packages and sudo was refused; as root run 'make system' here, then run make again"
}

# Third-party sources may be broken without harm to us, so a failing update is told only if the installation fails too.
apt_update() { as_root apt-get update >>"$LOG" 2>&1 || true; }

# Usage: apt_install [-t RELEASE] PACKAGE...
apt_install() {
    : >"$LOG.apt"
    # Without recommends: libvulkan1 recommends the driver, which has its own step below. Nothing of the user's is removed.
    if as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 \
        install -y --no-remove --no-install-recommends "$@" >"$LOG.apt" 2>&1; then
        cat "$LOG.apt" >>"$LOG"
        return
    fi
    cat "$LOG.apt" >>"$LOG"
    tail -n 3 "$LOG.apt" >&2
    if grep -qE 'Unable to fetch|Failed to fetch|Unable to locate|no installation candidate|not resolve|Could not connect|is not valid for APT::Default-Release' "$LOG.apt"; then
        die "apt-get could not fetch: $*; check the network and apt's sources (apt-get update), then run make again"
    fi
    if grep -q 'Could not get lock' "$LOG.apt"; then
        die "another program is installing packages; wait until it has ended, then run make again"
    fi
    die "apt-get could not install: $*; its last lines are above, all of them in $LOG"
}

install_system_packages() {
    local packages
    packages=$(missing_packages "$PYTHON" | paste -sd ' ')
    [ -n "$packages" ] || return 0
    require_apt_and_root "$packages"
    say "installing system packages: $packages"
    apt_update
    # shellcheck disable=SC2086 # a list of names
    apt_install $packages
    PYTHON=$(find_python)
    packages=$(missing_packages "$PYTHON" | paste -sd ' ')
    [ -z "$packages" ] ||
        die "still missing after the installation: $packages; a Python of 3.11 or newer is needed (Debian 12, Ubuntu 24.04 or newer)"
}

# ---- Vulkan driver ----------------------------------------------------------------------------------------------

probe_vulkan() { "$PYTHON" tools/vulkan_probe.py 2>>"$LOG"; }

is_debian_12() { grep -qx 'VERSION_CODENAME=bookworm' "$OS_RELEASE" 2>/dev/null; }

# Debian 12's Mesa is 22.3; its backports have 25. They come from the mirror that this machine uses already.
enable_backports() {
    local targets uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg file=/etc/apt/sources.list.d/bookworm-backports.sources
    # shellcheck disable=SC2016 # apt expands these, not the shell
    targets=$(apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages')
    if grep -q '^bookworm-backports main ' <<<"$targets"; then return; fi
    uri=$(awk '$1 == "bookworm" && $2 == "main" { print $3; exit }' <<<"$targets")
    [ -n "$uri" ] ||
        die "apt's sources name no Debian mirror for bookworm, so Mesa 25 cannot come from bookworm-backports; add that source, then run make again"
    say "adding apt source bookworm-backports ($file)"
    {
        printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\n' "$uri"
        if [ -e "$keyring" ]; then printf 'Signed-By: %s\n' "$keyring"; fi
    } | as_root tee "$file" >/dev/null || die "cannot write $file; make it writable for root, then run make again"
}

install_vulkan_driver() {
    local found
    if found=$(probe_vulkan); then return; fi
    say "no usable Vulkan device yet: $(head -n 1 <<<"$found")"
    require_apt_and_root mesa-vulkan-drivers
    say "installing Mesa's Vulkan drivers (AMD, Intel and the CPU's)"
    apt_update
    if is_debian_12; then
        enable_backports
        apt_update
        apt_install -t bookworm-backports mesa-vulkan-drivers
    else
        apt_install mesa-vulkan-drivers
    fi
    found=$(probe_vulkan) ||
        die "Mesa is installed and there is still no usable Vulkan device ($(head -n 1 <<<"$found")); unset VK_DRIVER_FILES and VK_ICD_FILENAMES if they are set, or update the driver"
}

# ---- Python environment -----------------------------------------------------------------------------------------

readonly NO_NETWORK='Failed to establish|not resolve|dns error|Name or service|name resolution|[Cc]onnection|timed out|Network is unreachable|error sending request|CERTIFICATE|certificate'

# Runs a command with its output shown and kept; on failure tells a dead network ($1) from all else ($2).
fetch_or_die() {
    local offline=$1 broken=$2
    shift 2
    if "$@" 2>&1 | tee "$LOG.fetch" >&2; then
        cat "$LOG.fetch" >>"$LOG"
        return
    fi
    cat "$LOG.fetch" >>"$LOG"
    if grep -qE "$NO_NETWORK" "$LOG.fetch"; then die "$offline"; fi
    die "$broken"
}

install_uv() {
    if [ "$(.tools/uv/bin/uv --version 2>/dev/null | awk '{ print $2 }')" = "$UV_VERSION" ]; then return; fi
    say "installing uv $UV_VERSION in .tools/uv"
    "$PYTHON" -m venv --clear .tools/uv >>"$LOG" 2>&1 ||
        die "$PYTHON cannot make an environment in .tools/uv; see $LOG, and check the free space and who owns this folder"
    fetch_or_die \
        "uv could not be fetched; check the network (and HTTPS_PROXY, or PIP_CERT behind a proxy with its own certificate), then run make again" \
        "uv $UV_VERSION could not be installed; pip's message is above, all of it in $LOG" \
        .tools/uv/bin/python -m pip install --quiet --disable-pip-version-check --retries 2 "uv==$UV_VERSION"
}

# --inexact leaves what the user added (the train extra) where it is. Reinstalling latentvk compiles the companion layer.
sync_environment() {
    say "installing Python packages in .venv (the first time Kompute is compiled: two minutes or so)"
    fetch_or_die \
        "Python packages could not be fetched; check the network (and HTTPS_PROXY, or SSL_CERT_FILE behind a proxy with its own certificate), then run make again" \
        "the Python environment could not be built; uv's message is above, all of it in $LOG; for kp look at the compiler's words first" \
        env -u VIRTUAL_ENV UV_PROJECT_ENVIRONMENT=.venv .tools/uv/bin/uv sync --inexact --no-progress --no-python-downloads \
        --reinstall-package latentvk --python "$PYTHON"
    .venv/bin/python -c 'import kp' 2>>"$LOG" ||
        die "Kompute is installed but does not load; see $LOG, then delete .venv and run make again"
}

# ---- the whole --------------------------------------------------------------------------------------------------

# What the environment was built from and where: a changed list of packages or a moved checkout is set up again.
fingerprint() {
    pwd
    cat pyproject.toml hatch_build.py vkbackend/companion/*.[ch] tools/setup.sh tools/vulkan_probe.py | sha256sum
}

everything_is_there() {
    [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ] && [ -x .venv/bin/latentvk ] && [ -f "$COMPANION" ] &&
        have glslangValidator && have spirv-val && .venv/bin/python -c 'import kp' 2>/dev/null &&
        .venv/bin/python tools/vulkan_probe.py >/dev/null 2>&1 && { [ -z "$SCOPE" ] || has_validation .venv/bin/python; }
}

case $SCOPE in
"" | --tests) if everything_is_there; then exit 0; fi ;;
--system) [ "$(id -u)" = 0 ] || die "--system is for root; without root run make, which asks sudo" ;;
*) die "unknown argument $SCOPE; expected --tests, --system or none" ;;
esac
if ! { mkdir -p "$(dirname "$LOG")" && : >"$LOG"; } 2>/dev/null; then
    die "cannot write $LOG in $PWD; make the checkout yours (chown), then run make again"
fi
PYTHON=$(find_python)
install_system_packages
install_vulkan_driver
if [ "$SCOPE" = --system ]; then exit 0; fi
install_uv
# A moved checkout leaves scripts that name the old place.
if [ -f "$STAMP" ] && [ "$(head -n 1 "$STAMP")" != "$PWD" ]; then rm -rf .venv; fi
sync_environment
fingerprint >"$STAMP"
say "done"
