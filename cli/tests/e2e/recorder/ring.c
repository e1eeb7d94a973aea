// Works on files through io_uring alone, where no tracer of system calls looks. Ends with 77 where the machine
// denies rings.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int ring;
static struct io_uring_params params;
static char *rings;
static struct io_uring_sqe *entries;

// Has the ring carry out one operation, and returns its result.
static int carry_out(struct io_uring_sqe entry, const char *what) {
    unsigned *tail = (unsigned *)(rings + params.sq_off.tail), at = *tail;
    unsigned slot = at & *(unsigned *)(rings + params.sq_off.ring_mask);
    entries[slot] = entry;
    ((unsigned *)(rings + params.sq_off.array))[slot] = slot;
    __atomic_store_n(tail, at + 1, __ATOMIC_RELEASE);
    if (syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1) {
        perror(what);
        exit(1);
    }
    unsigned *head = (unsigned *)(rings + params.cq_off.head), first = *head;
    unsigned mask = *(unsigned *)(rings + params.cq_off.ring_mask);
    int result = ((struct io_uring_cqe *)(rings + params.cq_off.cqes))[first & mask].res;
    __atomic_store_n(head, first + 1, __ATOMIC_RELEASE);
    return result;
}

static int must(int result, const char *what) {
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(-result));
        exit(1);
    }
    return result;
}

static int open_file(const char *path, int flags) {
    struct io_uring_sqe entry = {.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (unsigned long)path};
    entry.open_flags = flags;
    entry.len = 0644;
    return carry_out(entry, "open");
}

static int transfer(int opcode, int file, char *buffer, unsigned size) {
    struct io_uring_sqe entry = {.opcode = opcode, .fd = file, .addr = (unsigned long)buffer, .len = size};
    return carry_out(entry, "transfer");
}

static int named(int opcode, const char *path, int flags) {
    struct io_uring_sqe entry = {.opcode = opcode, .fd = AT_FDCWD, .addr = (unsigned long)path};
    entry.unlink_flags = flags;
    if (opcode == IORING_OP_MKDIRAT) {
        entry.len = 0755;
    }
    return carry_out(entry, "name");
}

static int renamed(const char *from, const char *to) {
    struct io_uring_sqe entry = {.opcode = IORING_OP_RENAMEAT, .fd = AT_FDCWD, .addr = (unsigned long)from};
    entry.addr2 = (unsigned long)to;
    entry.len = (unsigned)AT_FDCWD;
    return carry_out(entry, "rename");
}

static int looked_at(const char *path) {
    static struct statx found;
    struct io_uring_sqe entry = {.opcode = IORING_OP_STATX, .fd = AT_FDCWD, .addr = (unsigned long)path};
    entry.len = STATX_BASIC_STATS;
    entry.off = (unsigned long)&found;
    return carry_out(entry, "look");
}

int main(void) {
    ring = syscall(__NR_io_uring_setup, 8, &params);
    if (ring < 0) {
        perror("io_uring_setup");
        return errno == EPERM || errno == ENOSYS ? 77 : 1;
    }
    int share = PROT_READ | PROT_WRITE;
    rings = mmap(NULL, 65536, share, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    entries = mmap(NULL, 4096, share, MAP_SHARED, ring, IORING_OFF_SQES);
    if (rings == MAP_FAILED || entries == MAP_FAILED || !(params.features & IORING_FEAT_SINGLE_MMAP)) {
        return 77;
    }
    char buffer[64];
    int in = must(open_file("in/link", O_RDONLY), "in/link");
    int size = must(transfer(IORING_OP_READ, in, buffer, sizeof buffer), "read");
    must(looked_at("in/b"), "in/b");
    if (looked_at("in/missing") != -ENOENT) {
        return 1;
    }
    must(named(IORING_OP_MKDIRAT, "out", 0), "out");
    int out = must(open_file("out/part", O_CREAT | O_WRONLY), "out/part");
    must(transfer(IORING_OP_WRITE, out, buffer, size), "write");
    must(renamed("out/part", "out/whole"), "out/whole");
    must(named(IORING_OP_UNLINKAT, "in/c", 0), "in/c");
    return 0;
}
