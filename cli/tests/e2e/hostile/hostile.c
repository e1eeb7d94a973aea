// Does what no sane program does to the tree in its working directory: random calls with odd arguments, from many
// threads of many processes, interrupted by signals, and killed in the middle.
//
//     hostile fill COUNT
//     hostile SEED MILLISECONDS VIRTUAL
//
// The first form makes v0…, of different sizes, in v/. The second goes wild.
//
// The content of files p0… may be read at any time and is what belongs there, or zero where somebody cut it off; that
// of v0…, of which there are VIRTUAL, is whole. Everything else, in c/, is fair game. Ends with 0 if all that was
// read was right, and says on standard error what was wrong.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { PROCESSES = 4, THREADS = 4, PATTERNED = 12, PATTERN_BYTES = 200000, WRONG = 3 };

static int virtual_files;

struct thread {
    uint64_t state;
    char *buffer;
};

static const size_t buffer_bytes = 1 << 18;

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

static uint64_t any(struct thread *t) {
    return mix(t->state += 0x9e3779b97f4a7c15);
}

static uint64_t below(struct thread *t, uint64_t bound) {
    return any(t) % bound;
}

// The byte that belongs at a position of a file.
static unsigned char pattern(unsigned file, uint64_t at) {
    return mix((uint64_t)(file + 1) << 40 | at >> 3) >> (8 * (at & 7));
}

static void wrong(const char *what, unsigned file, uint64_t at, unsigned char found) {
    fprintf(stderr, "hostile: %s%u at %llu: found %02x, expected %02x\n", what, file, (unsigned long long)at, found,
            pattern(file, at));
    _exit(WRONG);
}

static void compare(const char *what, unsigned file, uint64_t at, const char *found, ssize_t size, int zeros) {
    for (ssize_t i = 0; i < size; i++) {
        unsigned char byte = found[i];
        if (byte != pattern(file, at + i) && !(zeros && byte == 0)) {
            wrong(what, file, at + i, byte);
        }
    }
}

static int64_t odd_offset(struct thread *t) {
    static const int64_t odd[] = {0, 1, 4095, 4096, 131071, 131072, 199999, 1 << 20, -1, INT64_MAX, INT64_MIN,
                                  1LL << 40, INT32_MAX, 4294967296LL};
    return below(t, 2) ? odd[below(t, sizeof odd / sizeof *odd)] : (int64_t)below(t, PATTERN_BYTES);
}

static size_t odd_size(struct thread *t) {
    static const size_t odd[] = {0, 1, 7, 4096, 4097, 65536, 131072, 1 << 18};
    return odd[below(t, sizeof odd / sizeof *odd)];
}

// A name in c/, mostly one of few, sometimes one that cannot be.
static const char *odd_name(struct thread *t, char *name) {
    switch (below(t, 12)) {
    case 0:
        return "c";
    case 1:
        return "c/../c/.";
    case 2:
        memset(name, 'x', 300);
        memcpy(name, "c/", 2);
        name[2 + 250 + below(t, 8)] = 0;
        return name;
    case 3:
        sprintf(name, "c/d%d/\xff\xfe\n%d/", (int)below(t, 3), (int)below(t, 3));
        return name;
    case 4:
        return below(t, 2) ? "" : "c/.vout-stdout";
    case 5:
    case 6:
        sprintf(name, "c/d%d/f%d", (int)below(t, 3), (int)below(t, 3));
        return name;
    case 7:
        sprintf(name, "c/d%d", (int)below(t, 3));
        return name;
    default:
        sprintf(name, "c/f%d", (int)below(t, 6));
        return name;
    }
}

static void read_patterned(struct thread *t) {
    char name[16];
    unsigned file = below(t, PATTERNED);
    sprintf(name, "p%u", file);
    int fd = open(name, O_RDONLY | (below(t, 8) ? 0 : O_DIRECT));
    if (fd < 0) {
        return;
    }
    for (int i = 0; i < 3; i++) {
        int64_t at = below(t, PATTERN_BYTES);
        ssize_t got = pread(fd, t->buffer, odd_size(t), at);
        compare("p", file, at, t->buffer, got, 1);
    }
    close(fd);
}

static void write_patterned(struct thread *t) {
    char name[16];
    unsigned file = below(t, PATTERNED);
    sprintf(name, "p%u", file);
    if (!below(t, 30)) {
        unlink(name);
    }
    int fd = open(name, O_RDWR | O_CREAT | (below(t, 20) ? 0 : O_TRUNC), 0644);
    if (fd < 0) {
        return;
    }
    uint64_t at = below(t, PATTERN_BYTES);
    size_t size = odd_size(t);
    for (size_t i = 0; i < size; i++) {
        t->buffer[i] = pattern(file, at + i);
    }
    if (pwrite(fd, t->buffer, size, at) < 0) {
        // A full or failing disk is not ours to judge.
    }
    if (!below(t, 10) && ftruncate(fd, below(t, PATTERN_BYTES)) < 0) {
    }
    if (!below(t, 10)) {
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, below(t, PATTERN_BYTES), odd_size(t));
    }
    ssize_t got = pread(fd, t->buffer, odd_size(t), at);
    compare("p", file, at, t->buffer, got, 1);
    close(fd);
}

static void read_virtual(struct thread *t) {
    char name[16];
    if (!virtual_files) {
        return;
    }
    unsigned file = below(t, virtual_files);
    sprintf(name, "v/v%u", file);
    int fd = open(name, O_RDONLY);
    struct stat found;
    if (fd < 0 || fstat(fd, &found) != 0) {
        // A signal may interrupt an open, but nothing else.
        if (fd >= 0 || errno != EINTR) {
            fprintf(stderr, "hostile: %s: %s\n", name, strerror(errno));
            _exit(WRONG);
        }
        return;
    }
    uint64_t at = below(t, found.st_size);
    if (below(t, 3)) {
        ssize_t got = pread(fd, t->buffer, odd_size(t), at);
        compare("v", 1000 + file, at, t->buffer, got, 0);
    } else {
        char *mapped = mmap(NULL, found.st_size, PROT_READ, below(t, 2) ? MAP_PRIVATE : MAP_SHARED, fd, 0);
        if (mapped != MAP_FAILED) {
            uint64_t size = found.st_size - at;
            compare("v", 1000 + file, at, mapped + at, size < 5000 ? size : 5000, 0);
            munmap(mapped, found.st_size);
        }
    }
    close(fd);
}

// Calls on names, with whatever arguments.
static void odd_call_on_names(struct thread *t) {
    char one[512], two[512], value[64] = {0};
    const char *a = odd_name(t, one), *b = odd_name(t, two);
    struct timespec times[2] = {{(time_t)any(t), below(t, 2) ? UTIME_OMIT : (long)below(t, 2000000000)},
                                {below(t, 3) - 1, UTIME_NOW}};
    struct stat found;
    struct statfs whole;
    union {
        struct file_handle handle;
        char space[256];
    } handle = {.handle.handle_bytes = below(t, 129)};
    int mount;
    switch (below(t, 24)) {
    case 0: mkdir(a, any(t)); break;
    case 1: rmdir(a); break;
    case 2: unlink(a); break;
    case 3: rename(a, b); break;
    case 4: syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, below(t, 16)); break;
    case 5: if (link(a, b)) {} break;
    case 6: if (symlink(a, b)) {} break;
    case 7: chmod(a, any(t) & 07777); break;
    case 8: if (lchown(a, below(t, 3) - 1, below(t, 3) - 1)) {} break;
    case 9: utimensat(AT_FDCWD, a, times, below(t, 2) ? AT_SYMLINK_NOFOLLOW : (int)any(t)); break;
    case 10: if (truncate(a, odd_offset(t) % (1 << 22))) {} break;
    case 11: mknod(a, any(t) & (S_IFMT | 0777) & ~S_IFBLK & ~S_IFCHR, any(t)); break;
    case 12: setxattr(a, below(t, 2) ? "user.x" : "security.y", value, below(t, 64), below(t, 4)); break;
    case 13: getxattr(a, "user.x", value, below(t, 64)); break;
    case 14: listxattr(a, below(t, 2) ? NULL : value, below(t, 64)); break;
    case 15: removexattr(a, "user.x"); break;
    case 16: if (readlink(a, t->buffer, odd_size(t)) < 0) {} break;
    case 17: access(a, any(t)); break;
    case 18: syscall(SYS_statx, AT_FDCWD, a, (int)any(t), (unsigned)any(t), t->buffer); break;
    case 19: stat(a, &found); break;
    case 20: statfs(a, &whole); break;
    case 21: name_to_handle_at(AT_FDCWD, a, &handle.handle, &mount, any(t) & AT_EMPTY_PATH); break;
    case 22: syscall(SYS_openat2, AT_FDCWD, a, t->buffer, below(t, 64)); break;
    default: lstat(a, &found); break;
    }
}

static void odd_transfers(struct thread *t, int fd, int other) {
    int64_t from = odd_offset(t), to = odd_offset(t);
    struct iovec parts[4];
    for (int i = 0; i < 4; i++) {
        parts[i] = (struct iovec){below(t, 9) ? t->buffer : NULL, odd_size(t) / 4};
    }
    switch (below(t, 12)) {
    case 0: if (pread(fd, t->buffer, odd_size(t), from) < 0) {} break;
    case 1: if (pwrite(fd, t->buffer, odd_size(t), from % (1 << 22)) < 0) {} break;
    case 2: if (preadv(fd, parts, below(t, 5), from) < 0) {} break;
    case 3: if (pwritev(fd, parts, below(t, 5), from % (1 << 22)) < 0) {} break;
    case 4: if (copy_file_range(fd, &from, other, &to, odd_size(t), below(t, 2)) < 0) {} break;
    case 5: if (sendfile(other, fd, &from, odd_size(t)) < 0) {} break;
    case 6: readahead(fd, from, odd_size(t)); break;
    case 7: posix_fadvise(fd, from, odd_size(t), below(t, 7)); break;
    // Into memory that is not there.
    case 8: if (read(fd, (void *)8, odd_size(t)) < 0) {} break;
    case 9: if (write(fd, (void *)8, odd_size(t)) < 0) {} break;
    case 10: sync_file_range(fd, from, odd_size(t), any(t)); break;
    default: if (read(fd, t->buffer, odd_size(t)) < 0) {} break;
    }
}

static void odd_controls(struct thread *t, int fd) {
    struct flock lock = {.l_type = below(t, 4), .l_whence = below(t, 4), .l_start = odd_offset(t),
                         .l_len = odd_offset(t)};
    struct stat found;
    struct pollfd polled = {fd, (short)any(t), 0};
    switch (below(t, 14)) {
    case 0: lseek(fd, odd_offset(t), below(t, 7)); break;
    case 1: fallocate(fd, any(t) & 0x7f, odd_offset(t) % (1 << 22), odd_size(t)); break;
    case 2: if (ftruncate(fd, odd_offset(t) % (1 << 22))) {} break;
    case 3: below(t, 2) ? fsync(fd) : fdatasync(fd); break;
    case 4: flock(fd, (any(t) & 15) | LOCK_NB); break;
    case 5: fcntl(fd, below(t, 2) ? F_SETLK : F_GETLK, &lock); break;
    case 6: fcntl(fd, F_OFD_SETLK, &lock); break;
    case 7: ioctl(fd, any(t), t->buffer); break;
    case 8: fcntl(fd, F_SETFL, any(t) & (O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME)); break;
    case 9: poll(&polled, 1, 0); break;
    case 10: fstat(fd, &found); break;
    case 11: fchmod(fd, any(t) & 0777); break;
    case 12: syscall(SYS_getdents64, fd, t->buffer, odd_size(t)); break;
    default: futimens(fd, NULL); break;
    }
}

static void odd_call_on_descriptors(struct thread *t) {
    char one[512], two[512];
    // Never waits for the other end of a pipe, nor takes a terminal or a device.
    int mask = ~(O_ASYNC | O_PATH) | O_NONBLOCK;
    int fd = open(odd_name(t, one), ((int)any(t) & mask) | O_NONBLOCK, below(t, 01000));
    int other = open(odd_name(t, two), O_RDWR | O_NONBLOCK);
    for (int i = below(t, 6); fd >= 0 && i > 0; i--) {
        below(t, 2) ? odd_transfers(t, fd, other) : odd_controls(t, fd);
    }
    if (fd >= 0 && !below(t, 4)) {
        char *mapped = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
        if (mapped != MAP_FAILED) {
            msync(mapped, 8192, MS_SYNC);
            munmap(mapped, 8192);
        }
    }
    close(fd);
    close(other);
}

static void *work(void *argument) {
    struct thread *t = argument;
    t->buffer = mmap(NULL, buffer_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (;;) {
        switch (below(t, 8)) {
        case 0: read_patterned(t); break;
        case 1: write_patterned(t); break;
        case 2:
        case 3: read_virtual(t); break;
        case 4:
        case 5: odd_call_on_names(t); break;
        default: odd_call_on_descriptors(t); break;
        }
    }
    return NULL;
}

static void interrupt(int signal) {
    (void)signal;
}

static void process(uint64_t seed) {
    // Without SA_RESTART: every blocking call is interrupted sooner or later.
    struct sigaction action = {.sa_handler = interrupt};
    sigaction(SIGALRM, &action, NULL);
    sigaction(SIGIO, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    struct itimerval often = {{0, 1700}, {0, 1700}};
    setitimer(ITIMER_REAL, &often, NULL);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        struct thread *t = calloc(1, sizeof *t);
        t->state = mix(seed * THREADS + i);
        pthread_create(&threads[i], NULL, work, t);
    }
    pthread_join(threads[0], NULL);
}

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int fill(int files) {
    mkdir("v", 0755);
    for (int file = 0; file < files; file++) {
        char name[16];
        sprintf(name, "v/v%d", file);
        FILE *out = fopen(name, "w");
        // From less than a page to more than a frame of an archive.
        for (uint64_t at = 0, size = 1000 << file % 12; at < size; at++) {
            putc(pattern(1000 + file, at), out);
        }
        if (!out || fclose(out) != 0) {
            return 1;
        }
    }
    return 0;
}

int main(int count, char **arguments) {
    if (count == 3 && !strcmp(arguments[1], "fill")) {
        return fill(atoi(arguments[2]));
    }
    if (count != 4) {
        return 2;
    }
    struct thread random = {.state = strtoull(arguments[1], NULL, 10)};
    uint64_t end = now_ms() + strtoull(arguments[2], NULL, 10);
    virtual_files = atoi(arguments[3]);
    mkdir("c", 0755);
    pid_t children[PROCESSES] = {0};
    int result = 0;
    while (now_ms() < end && !result) {
        for (int i = 0; i < PROCESSES; i++) {
            if (!children[i] && !(children[i] = fork())) {
                process(any(&random) + i);
                _exit(0);
            }
        }
        usleep(20000 + below(&random, 200000));
        // Whatever one of them is in the middle of.
        int victim = below(&random, PROCESSES), status;
        kill(children[victim], SIGKILL);
        for (int i = 0; i < PROCESSES; i++) {
            if (waitpid(children[i], &status, i == victim ? 0 : WNOHANG) == children[i]) {
                children[i] = 0;
                // Memory of a file that another one cut off may be gone: that is a signal, and right.
                result |= WIFEXITED(status) ? WEXITSTATUS(status) : 0;
            }
        }
    }
    for (int i = 0; i < PROCESSES; i++) {
        int status;
        if (children[i]) {
            kill(children[i], SIGKILL);
            waitpid(children[i], &status, 0);
            result |= WIFEXITED(status) ? WEXITSTATUS(status) : 0;
        }
    }
    return result;
}
