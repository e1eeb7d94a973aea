# Sourced by the suites: a journaled disk in memory, and the end of what was mounted on it.
# shellcheck shell=bash

# The vout that unmounts what a script left on the disk. To be set by who sources this.
disk_vout=${disk_vout:-}

# Makes a journaled ext4 file system of size $1 in memory and mounts it; sets disk_point. The root file system
# may lack a journal, where re-creating deleted files is slow and erratic.
disk_make() {
    if [ "$(id -u)" != 0 ]; then
        echo "disk: mounting a disk image needs root" >&2
        return 1
    fi
    disk_image=$(mktemp -p /dev/shm vout-disk-XXXXXX.img)
    disk_point=$(mktemp -d -p /tmp vout-disk-XXXXXX)
    trap disk_remove EXIT
    truncate -s "$1" "$disk_image"
    mkfs.ext4 -q -F -O has_journal "$disk_image"
    mount -o loop "$disk_image" "$disk_point"
}

disk_remove() {
    cd /
    disk_clear
    # Daemons keep the disk busy until they see that they are idle; these are ours by their workspace.
    disk_end_daemons
    umount "$disk_point" 2>/dev/null || umount -l "$disk_point" || true
    rmdir "$disk_point" 2>/dev/null || true
    rm -f "$disk_image"
}

# Takes away the live mounts that a failed step left on the disk, innermost first.
disk_clear() {
    local number point
    while read -r number point; do
        timeout 20 "$disk_vout" unmount --discard "$point" >/dev/null 2>&1 && continue
        # Whoever waits for an answer of that mount is told that there will be none.
        echo 1 2>/dev/null >"/sys/fs/fuse/connections/${number#*:}/abort" || true
        umount -l "$point" || true
    done < <(awk -v disk="$disk_point/" 'index($5, disk) == 1 { print $3, $5 }' /proc/self/mountinfo | sort -r -k 2)
}

# Ends the daemons whose workspace is on the disk.
disk_end_daemons() {
    local process
    for process in /proc/[0-9]*; do
        if [ "$(cat "$process/comm" 2>/dev/null)" = vout-mountd ] &&
            tr '\0' '\n' <"$process/cmdline" 2>/dev/null | grep -qF "$disk_point/"; then
            kill "${process#/proc/}" 2>/dev/null || true
        fi
    done
}
