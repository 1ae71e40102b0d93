#!/bin/sh
# Become the program of this script's name in the root beside it: BUILD/bin/qemu-img becomes
# BUILD/root/usr/bin/qemu-img, with the pid, the working directory and the folders of the host but
# with the root's own /usr and /etc. Its mount namespace ends with it.
set -eu
root=$(cd "${0%/*}/../root" && pwd -P)
exec unshare --mount sh -c '
    root=$1 program=$2
    shift 2
    for folder in /*; do
        case $folder in /usr | /etc | /opt | /boot | /lost+found) continue ;; esac
        if [ -d "$folder" ] && [ ! -L "$folder" ]; then
            mkdir -p "$root$folder"
            mount --rbind "$folder" "$root$folder"
        fi
    done
    exec unshare --root="$root" --wd="$PWD" "/usr/bin/$program" "$@"
' sh "$root" "${0##*/}" "$@"
