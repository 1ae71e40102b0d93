# shellcheck shell=bash
# To be sourced: an apt of one's own, with lists, state and cache in a folder. The machine's settings
# and packages stay as they are.

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# private_apt FOLDER ARCHITECTURE STATUS SUITE...: sets the array `private`, options of apt-get for
# these suites of Debian. STATUS is what is installed: a dpkg status file; empty for nothing. Uses
# `say` of whoever sources this.
private_apt() {
    local apt=$1 architecture=$2 status=$3 suite mirror
    shift 3
    command -v apt-get >/dev/null 2>&1 || {
        say "apt-get is missing: this comes from Debian"
        return 1
    }
    # The mirror is the one this machine already uses for its own packages.
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(CODENAME)' |
        awk '$2 == "Debian" && $3 == "bookworm" && !mirror { mirror = $1 } END { print mirror }')
    [ -n "$mirror" ] || {
        say "this machine's apt has no Debian 12 (bookworm) source to take the mirror from"
        return 1
    }
    rm -rf "$apt"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    for suite in "$@"; do
        echo "deb [arch=$architecture signed-by=$keyring] $mirror $suite main"
    done >"$apt/sources.list"
    [ -n "$status" ] || status=$apt/status
    : >"$apt/status"
    # shellcheck disable=SC2034 # whoever sources this has it
    private=(
        -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferencesparts=/dev/null -o "Dir::State::lists=$apt/lists"
        -o "Dir::State::status=$status" -o "Dir::Cache=$apt/cache"
        -o "Dir::Cache::archives=$apt/cache/archives" -o APT::Sandbox::User=root
        -o APT::Get::List-Cleanup=0 -o Debug::NoLocking=1 -o APT::Install-Recommends=0
        -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture"
    )
}
