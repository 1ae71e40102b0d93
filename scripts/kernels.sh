#!/usr/bin/env bash
# Debian's own kernels below .cache/kernels/VERSION/: `kernel` and an `initrd` for a small guest of
# full emulation, for the soak. The guest has this machine's root, read-only below a tmpfs, and a
# folder `out` that both write to; its first program is $out/inside, after which it is off.
#
# apt fetches the packages, whose signatures it checks, and nothing is installed. What is here
# already is not fetched again. (/dev/kvm of a machine that is a guest itself may not boot them.)
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/.cache/kernels
private=() # options of apt-get, where a kernel comes from another Debian

say() { echo "kernels: $*" >&2; }
. scripts/private_apt.sh

fetch() { # FOLDER PACKAGE...: unpacked there
    local folder=$1
    shift
    mkdir -p "$folder/debs"
    (cd "$folder/debs" && apt-get "${private[@]}" -qq -o APT::Sandbox::User=root download "$@")
    for package in "$folder"/debs/*.deb; do
        dpkg -x "$package" "$folder"
    done
    rm -r "$folder/debs"
}

newest() { # the newest signed kernel of a version that apt knows
    apt-cache "${private[@]}" pkgnames "linux-image-$1" | grep -E "^linux-image-$1\.[0-9]+[-+][0-9a-z+]*-?amd64$" |
        sort -V | tail -n 1
}

make_initrd() { # KERNEL'S FOLDER
    local folder=$1 tools=$cache/tools release root module file
    release=$(ls "$folder/lib/modules")
    root=$(mktemp -d)
    # shellcheck disable=SC2064 # this one, now
    trap "rm -rf '$root'" RETURN
    mkdir -p "$root"/{bin,modules,dev,proc,sys,new,low,tmp}
    cp "$tools/bin/busybox" "$root/bin/busybox"
    install -m 755 scripts/kernel_init "$root/init"
    export LD_LIBRARY_PATH=$tools/lib/x86_64-linux-gnu:$tools/usr/lib/x86_64-linux-gnu
    (exec -a depmod "$tools/bin/kmod" -b "$folder" "$release")
    for module in virtio_pci 9p 9pnet_virtio overlay; do
        (exec -a modprobe "$tools/bin/kmod" -d "$folder" -S "$release" --show-depends "$module") |
            while read -r verb file _; do
                [ "$verb" = insmod ] || continue
                module=$(basename "$file" .xz)
                grep -qx "$module" "$root/modules/list" 2>/dev/null && continue
                case $file in
                    *.xz) xz -dc "$file" >"$root/modules/$module" ;;
                    *) cp "$file" "$root/modules/$module" ;;
                esac
                echo "$module" >>"$root/modules/list"
            done
    done
    (cd "$root" && find . | "$tools/bin/busybox" cpio -o -H newc 2>/dev/null) | gzip -1
}

[ -x "$cache/tools/bin/busybox" ] || fetch "$cache/tools" busybox-static kmod libkmod2
for version in 6.1 6.12 5.10; do
    folder=$cache/$version
    [ ! -e "$folder/initrd" ] || continue
    if [ "$version" = 5.10 ]; then
        # Debian 11's.
        private_apt "$cache/apt" amd64 "" bullseye || continue
        apt-get "${private[@]}" -qq update
    fi
    package=$(newest "$version")
    if [ -z "$package" ]; then
        say "apt knows no linux-image-$version*-amd64"
        continue
    fi
    rm -rf "$folder"
    say "fetching $package"
    fetch "$folder" "$package"
    cp "$folder"/boot/vmlinuz-* "$folder/kernel"
    make_initrd "$folder" >"$folder/initrd.part"
    mv "$folder/initrd.part" "$folder/initrd"
done
rm -rf "$cache/apt"
