# Sourced by the suites: where they run, with what, and the table at the end.
#
# A configuration is KIND with options: KIND is `native` (ext4 itself, the oracle), `view` (a task's view of a
# workspace on that ext4), or `live` (the workspace under a live mount). Options: `copied`, without passthrough;
# `user`, as an ordinary user, where views are in a user namespace and fusermount3 makes the live mount; `dev`, over
# /dev/fuse alone, where root otherwise has io_uring if the kernel does; `elsewhere`, with `user`, without user namespaces,
# so that views are at a path of their own. `view-copied-user` has both of the first.
# shellcheck shell=bash
# shellcheck source=scripts/suites/disk.sh
. scripts/suites/disk.sh

bed_results=$PWD/target/suites
bed_tools=$PWD/target/tools
bed_profile=${VOUT_SUITES_PROFILE:-dev}
bed_user=nobody
bed_group=nogroup
bed_failures=0
# Lines of the table: suite, configuration, passed, failed, skipped, note; separated by tabs.
bed_rows=()

bed_fail() {
    echo "suites: $*" >&2
    exit 1
}

# Prints the comment at the head of a script as its usage.
bed_usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$1"
}

# Installs Debian packages where their proof, a command or a file, is missing: PROOF PACKAGE…
bed_packages() {
    local missing=()
    while [ $# -gt 0 ]; do
        if [ ! -e "$1" ] && ! command -v "$1" >/dev/null; then missing+=("$2"); fi
        shift 2
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Installs a pinned program of crates.io into target/tools: NAME VERSION
bed_crate() {
    if [ "$("$bed_tools/bin/$1" --version 2>/dev/null)" != "$1 $2" ]; then
        cargo install --quiet --root "$bed_tools" --locked --version "$2" "$1"
    fi
}

# Builds vout, makes a disk of size $2, and prepares the results of suite $1.
bed_make() {
    bed_suite=$1
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin:/sbin"
    [ "$(id -u)" = 0 ] || bed_fail "mounting a disk image needs root"
    [ -e /dev/fuse ] || bed_fail "there is no /dev/fuse"
    scripts/setup --dev
    cargo build --quiet --profile "$bed_profile" -p vout-cli
    local built=$PWD/target/$bed_profile
    [ "$bed_profile" != dev ] || built=$PWD/target/debug
    mkdir -p "$bed_results/$bed_suite"
    disk_make "$2"
    chmod 755 "$disk_point"
    # On the disk an ordinary user reaches them too, and a build that goes on does not replace them.
    mkdir "$disk_point/bin"
    cp "$built/vout" "$built/vout-mountd" "$disk_point/bin"
    gcc -O1 -o "$disk_point/bin/confined" scripts/suites/programs/confined.c
    disk_vout=$disk_point/bin/vout
    # As short as /run/user/1000 is, because views that are elsewhere lie in it, and the paths of sockets are limited.
    bed_runtime=$(mktemp -d -p /run vout-XXXX)
    trap bed_remove EXIT
    chmod 755 "$bed_runtime"
    mkdir -m 700 "$bed_runtime/root" "$bed_runtime/$bed_user" "$disk_point/home" "$disk_point/home-$bed_user"
    chown "$bed_user:$bed_group" "$bed_runtime/$bed_user" "$disk_point/home-$bed_user"
    bed_open_fuse
    bed_enable_ring
    bed_started=$SECONDS
}

bed_has() {
    case "-$1-" in *"-$2-"*) ;; *) return 1 ;; esac
}

# Makes the workspace of a configuration, removing what is there; sets bed_workspace.
bed_workspace() {
    bed_workspace=$disk_point/$1
    rm -rf "$bed_workspace"
    mkdir "$bed_workspace"
    # Extended attributes are tested too, and cost what they cost.
    printf '[mount]\nxattrs = true\n' >"$bed_workspace/vout.toml"
    if bed_has "$1" user; then chown -R "$bed_user:$bed_group" "$bed_workspace"; fi
}

# Runs a command as whom the configuration says, with the surroundings that vout needs.
bed_as() {
    local configuration=$1 runtime=$bed_runtime/root home=$disk_point/home as=()
    shift
    if bed_has "$configuration" user; then
        runtime=$bed_runtime/$bed_user
        home=$disk_point/home-$bed_user
        as=(setpriv --reuid="$bed_user" --regid="$bed_group" --clear-groups)
    fi
    if bed_has "$configuration" elsewhere; then as=("$disk_point/bin/confined" "${as[@]}"); fi
    # The kernel lets nobody else, not even root, at an ordinary user's mount: only they can go there.
    "${as[@]}" env --chdir="$bed_workspace" XDG_RUNTIME_DIR="$runtime" HOME="$home" PATH="$disk_point/bin:$PATH" "$@"
}

# The options of `vout run` and `vout mount` for a configuration.
bed_options() {
    # The kinds differ in what they do by default.
    if bed_has "$1" copied; then printf '%s\n' --no-passthrough; else printf '%s\n' --passthrough; fi
    if bed_has "$1" dev; then
        printf '%s\n' --transport dev
    elif [ "$bed_ring" = Y ] && ! bed_has "$1" user; then
        printf '%s\n' --transport uring
    fi
}

# Makes a live mount of bed_workspace, where the configuration has one. It stays until bed_unmount.
bed_mount() {
    local options
    bed_has "$1" live || return 0
    mapfile -t options < <(bed_options "$1" | tr ' ' '\n')
    bed_as "$1" timeout 60 vout mount "${options[@]}" >&2
}

bed_unmount() {
    bed_has "$1" live || return 0
    bed_as "$1" timeout 120 vout unmount >&2 || {
        disk_clear
        return 1
    }
}

# Lets ordinary users at /dev/fuse, as udev does on most machines. It stays so: other suites may run at once.
bed_open_fuse() {
    chmod 666 /dev/fuse
}

bed_remove() {
    disk_remove
    rm -rf "$bed_runtime"
}

# Switches FUSE over io_uring on, where the kernel has it. It stays on: other suites may run at once.
bed_enable_ring() {
    local parameter=/sys/module/fuse/parameters/enable_uring
    bed_ring=N
    [ -e "$parameter" ] || return 0
    echo Y >"$parameter"
    bed_ring=Y
}

# Runs a command in bed_workspace, as the configuration says, for at most $2 seconds: CONFIGURATION SECONDS COMMAND…
# Where there is a live mount, bed_mount has made it.
bed_run() {
    local configuration=$1 limit=$2 options
    shift 2
    # Without the machine's leave a task would run in the workspace itself, and prove nothing.
    # shellcheck disable=SC2016
    if ! bed_has "$configuration" native; then
        set -- sh -c '[ "$(stat -f -c %T .)" = fuseblk ] || exit 99; exec "$@"' sh "$@"
    fi
    case "$configuration" in
        view*)
            mapfile -t options < <(bed_options "$configuration" | tr ' ' '\n')
            set -- vout run --quiet --no-cache "${options[@]}" -- "$@"
            ;;
    esac
    bed_as "$configuration" timeout -k 20 "$limit" "$@"
}

# Mounts, runs, unmounts; fails as the command does.
bed_all() {
    local code=0
    bed_mount "$1" || return
    bed_run "$@" || code=$?
    bed_unmount "$1" || code=${code/#0/1}
    return "$code"
}

# Adds a line to the table: CONFIGURATION PASSED FAILED SKIPPED [NOTE]
bed_row() {
    bed_rows+=("$bed_suite"$'\t'"$1"$'\t'"$2"$'\t'"$3"$'\t'"$4"$'\t'"${5:-}")
    echo "suites: $bed_suite $1: $2 passed, $3 failed, $4 skipped ${5:-}" >&2
}

# Notes that something went otherwise than it should.
bed_unexpected() {
    echo "suites: $bed_suite: unexpected: $*" >&2
    bed_failures=$((bed_failures + 1))
}

# Prints the table, leaves it in target/suites, and ends with what the suite is worth.
bed_end() {
    local row suite configuration passed failed skipped note
    {
        echo "$(date -u +%F), Linux $(uname -r), $(git describe --always --dirty 2>/dev/null || echo unknown)," \
            "$bed_profile build, io_uring: $bed_ring, $((SECONDS - bed_started)) s"
        echo
        echo '| suite | configuration | passed | failed | skipped | |'
        echo '|---|---|---:|---:|---:|---|'
        for row in "${bed_rows[@]}"; do
            IFS=$'\t' read -r suite configuration passed failed skipped note <<<"$row"
            echo "| $suite | $configuration | $passed | $failed | $skipped | $note |"
        done
    } | tee "$bed_results/$bed_suite.md"
    if [ "$bed_failures" -gt 0 ]; then
        echo "suites: $bed_suite: $bed_failures unexpected results; details are in $bed_results/$bed_suite" >&2
        exit 1
    fi
}
