# Sourced by the benchmarks: a journaled disk in memory, interleaved timing, medians, tables, JSON.
# shellcheck shell=bash

# Where results go, and the release build they are about.
bench_results=$PWD/target/bench
bench_vout=$PWD/target/release/vout

# Samples in microseconds, separated by spaces, by "ROW/COLUMN".
declare -A bench_samples=()

bench_fail() {
    echo "bench: $*" >&2
    exit 1
}

# Builds what is measured. Without it the numbers would be about last week.
bench_build() {
    cargo build --release --quiet -p vout-cli
    mkdir -p "$bench_results"
}

# Makes a journaled ext4 file system of size $1 in memory and mounts it; sets bench_disk. The root file system
# may lack a journal, where re-creating deleted files is slow and erratic.
bench_make_disk() {
    [ "$(id -u)" = 0 ] || bench_fail "mounting a disk image needs root"
    bench_image=$(mktemp -p /dev/shm vout-bench-XXXXXX.img)
    bench_disk=$(mktemp -d -p /tmp vout-bench-XXXXXX)
    trap bench_remove_disk EXIT
    truncate -s "$1" "$bench_image"
    mkfs.ext4 -q -F -O has_journal "$bench_image"
    mount -o loop "$bench_image" "$bench_disk"
}

bench_remove_disk() {
    local point
    cd /
    # Live mounts that a failed benchmark left, innermost first.
    while read -r point; do
        "$bench_vout" unmount --discard "$point" >/dev/null 2>&1 || umount -l "$point" || true
    done < <(awk -v disk="$bench_disk/" 'index($5, disk) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
    # Daemons keep the disk busy until they see that they are idle; these are ours by their workspace.
    bench_end_daemons
    umount "$bench_disk" 2>/dev/null || umount -l "$bench_disk" || true
    rmdir "$bench_disk" 2>/dev/null || true
    rm -f "$bench_image"
}

# Ends the daemons whose workspace is on our disk.
bench_end_daemons() {
    local process
    for process in /proc/[0-9]*; do
        if [ "$(cat "$process/comm" 2>/dev/null)" = vout-mountd ] &&
            tr '\0' '\n' <"$process/cmdline" 2>/dev/null | grep -qF "$bench_disk/"; then
            kill "${process#/proc/}" 2>/dev/null || true
        fi
    done
}

# Runs a command and adds its wall time to a sample: bench_time ROW COLUMN COMMAND…
bench_time() {
    local key=$1/$2 before after
    shift 2
    before=${EPOCHREALTIME/[.,]/}
    "$@" >"$bench_results/last.log" 2>&1 || {
        cat "$bench_results/last.log" >&2
        bench_fail "$key: '$*' failed"
    }
    after=${EPOCHREALTIME/[.,]/}
    bench_samples[$key]="${bench_samples[$key]:-} $((after - before))"
}

# Prints the median of a sample in milliseconds with one decimal, or nothing where there is no sample.
bench_median() {
    local sample=${bench_samples[$1/$2]:-}
    [ -n "$sample" ] || return 0
    tr ' ' '\n' <<<"$sample" | sed '/^$/d' | sort -n | awk '
        { value[NR] = $1 }
        END {
            middle = int((NR + 1) / 2)
            printf "%.1f", (NR % 2 ? value[middle] : (value[middle] + value[middle + 1]) / 2) / 1000
        }'
}

# Prints a Markdown table of medians: bench_table ROWS COLUMNS, each a list in one word.
bench_table() {
    local row column
    printf '| median, ms |'
    for column in $2; do printf ' %s |' "${column//_/ }"; done
    printf '\n|---|'
    for column in $2; do printf -- '---:|'; done
    printf '\n'
    for row in $1; do
        printf '| %s |' "${row//_/ }"
        for column in $2; do printf ' %s |' "$(bench_median "$row" "$column")"; done
        printf '\n'
    done
}

# Writes all samples as JSON to file $1: {"row": {"column": [microseconds…]}}.
bench_json() {
    local key
    for key in "${!bench_samples[@]}"; do
        printf '%s\t%s\n' "$key" "${bench_samples[$key]}"
    done | jq -R -s 'split("\n") | map(select(length > 0) | split("\t") |
        {path: (.[0] | split("/")), samples: (.[1] | split(" ") | map(select(length > 0) | tonumber))}) |
        reduce .[] as $s ({}; setpath($s.path; $s.samples))' >"$1"
    echo "bench: samples are in $1" >&2
}

# Fills directory $1 with $2 files of $3 bytes, 500 to a directory. Half of each is compressible text.
bench_fill() {
    local dir=$1 left=$2 size=$3 part=0 count
    while [ "$left" -gt 0 ]; do
        count=$((left < 500 ? left : 500))
        mkdir -p "$dir/$part"
        # Base64 of random bytes compresses to three quarters, as compiled code about does.
        head -c $((count * size)) < <(base64 -w 0 /dev/urandom) |
            split -b "$size" -a 3 -d - "$dir/$part/f"
        part=$((part + 1))
        left=$((left - count))
    done
}
