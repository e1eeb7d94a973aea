/* usage: programs SCENARIO COUNT
 *
 * What programs of several processes do with files, in the current directory. Each scenario prints what it saw, and
 * that is the same on every file system that is right. COUNT says how much of it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *answer(long result) {
    return result >= 0 ? "ok" : strerrorname_np(errno);
}

static long must(long result, const char *what) {
    if (result < 0) {
        printf("%s: %s\n", what, strerrorname_np(errno));
        exit(1);
    }
    return result;
}

static int create(const char *path, const char *content) {
    int fd = must(open(path, O_RDWR | O_CREAT | O_TRUNC, 0644), path);
    must(write(fd, content, strlen(content)), path);
    return fd;
}

/* Runs `body` in a child and returns how it ended. */
static int in_child(void (*body)(void)) {
    fflush(stdout);
    pid_t child = must(fork(), "fork");
    if (child == 0) {
        body();
        fflush(stdout);
        _exit(0);
    }
    int status;
    must(waitpid(child, &status, 0), "waitpid");
    return status;
}

static int posix_lock(int fd, int command, short type, off_t start, off_t length) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, command, &lock);
}

static void try_locks(void) {
    int fd = must(open("locked", O_RDWR), "open");
    printf("flock: %s\n", answer(flock(fd, LOCK_EX | LOCK_NB)));
    printf("flock shared: %s\n", answer(flock(fd, LOCK_SH | LOCK_NB)));
    printf("posix, overlapping: %s\n", answer(posix_lock(fd, F_SETLK, F_WRLCK, 5, 10)));
    printf("posix, beside: %s\n", answer(posix_lock(fd, F_SETLK, F_WRLCK, 10, 10)));
    printf("ofd, overlapping: %s\n", answer(posix_lock(fd, F_OFD_SETLK, F_WRLCK, 105, 10)));
    printf("ofd, beside: %s\n", answer(posix_lock(fd, F_OFD_SETLK, F_WRLCK, 110, 10)));
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    must(fcntl(fd, F_GETLK, &lock), "F_GETLK");
    printf("held by: %s\n", lock.l_type == F_UNLCK ? "nobody" : lock.l_pid == getppid() ? "the parent" : "another");
}

static void locks(long count) {
    (void)count;
    int fd = create("locked", "0123456789");
    must(flock(fd, LOCK_EX), "flock");
    must(posix_lock(fd, F_SETLK, F_WRLCK, 0, 10), "F_SETLK");
    must(posix_lock(fd, F_OFD_SETLK, F_WRLCK, 100, 10), "F_OFD_SETLK");
    in_child(try_locks);
    must(flock(fd, LOCK_UN), "unlock");
    must(posix_lock(fd, F_SETLK, F_UNLCK, 0, 0), "unlock");
    must(posix_lock(fd, F_OFD_SETLK, F_UNLCK, 0, 0), "unlock");
    in_child(try_locks);
    /* Closing any descriptor of a file gives up the POSIX locks of the process. */
    must(posix_lock(fd, F_SETLK, F_WRLCK, 0, 10), "F_SETLK");
    close(must(open("locked", O_RDONLY), "open"));
    in_child(try_locks);
    /* Waiting for a lock that another process gives up by ending. */
    int ready[2];
    must(pipe(ready), "pipe");
    pid_t child = must(fork(), "fork");
    if (child == 0) {
        int own = must(open("locked", O_RDWR), "open");
        must(posix_lock(own, F_SETLK, F_WRLCK, 0, 0), "F_SETLK");
        must(write(ready[1], "x", 1), "write");
        usleep(50000);
        _exit(0);
    }
    char byte;
    must(read(ready[0], &byte, 1), "read");
    printf("waited: %s\n", answer(posix_lock(fd, F_SETLKW, F_WRLCK, 0, 0)));
    waitpid(child, NULL, 0);
}

static void append(long count) {
    enum { WRITERS = 8, RECORD = 100 };
    close(create("log", ""));
    for (int writer = 0; writer < WRITERS; writer++) {
        if (must(fork(), "fork") == 0) {
            int fd = must(open("log", O_WRONLY | O_APPEND), "open");
            char record[RECORD];
            for (long number = 0; number < count; number++) {
                memset(record, 'a' + writer, RECORD);
                record[RECORD - 1] = '\n';
                must(write(fd, record, RECORD), "write");
            }
            _exit(0);
        }
    }
    for (int writer = 0; writer < WRITERS; writer++) must(wait(NULL), "wait");
    FILE *log = fopen("log", "r");
    char line[RECORD + 2];
    long counts[WRITERS] = {0}, torn = 0;
    while (fgets(line, sizeof line, log)) {
        int whole = strlen(line) == RECORD;
        for (int at = 1; at < RECORD - 1 && whole; at++) whole = line[at] == line[0];
        if (whole) counts[line[0] - 'a']++;
        else torn++;
    }
    printf("torn: %ld; lines:", torn);
    for (int writer = 0; writer < WRITERS; writer++) printf(" %ld", counts[writer]);
    printf("\n");
}

static char *map(const char *path, int flags, size_t size) {
    int fd = must(open(path, O_RDWR), path);
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
    must(at == MAP_FAILED ? -1 : 0, "mmap");
    close(fd);
    return at;
}

static void write_mapped(void) {
    char *shared = map("mapped", MAP_SHARED, 8192);
    shared[1] = 'c';
    __atomic_store_n(&shared[4096], 'c', __ATOMIC_SEQ_CST);
}

static void mapped(long count) {
    int fd = create("mapped", "");
    must(ftruncate(fd, 8192), "ftruncate");
    char *shared = map("mapped", MAP_SHARED, 8192), *private = map("mapped", MAP_PRIVATE, 8192), seen[4];
    private[0] = 'p';
    shared[0] = 's';
    in_child(write_mapped);
    must(pread(fd, seen, 3, 0), "pread");
    printf("read sees %c%c, the mapping %c%c, private %c\n", seen[0], seen[1], shared[1], shared[4096], private[0]);
    must(pwrite(fd, "W", 1, 2), "pwrite");
    printf("the mapping sees %c\n", shared[2]);
    /* One process writes numbers with write(), another reads them from its mapping: they only grow. */
    fflush(stdout);
    pid_t child = must(fork(), "fork");
    if (child == 0) {
        for (long number = 1; number <= count; number++) must(pwrite(fd, &number, sizeof number, 4096 + 512), "pwrite");
        _exit(0);
    }
    long last = 0, backwards = 0;
    while (last < count) {
        long now = __atomic_load_n((long *)(shared + 4096 + 512), __ATOMIC_SEQ_CST);
        backwards += now < last;
        last = now;
        if (waitpid(child, NULL, WNOHANG) == child) break;
    }
    last = __atomic_load_n((long *)(shared + 4096 + 512), __ATOMIC_SEQ_CST);
    printf("backwards: %ld; last: %ld\n", backwards, last);
    printf("msync: %s\n", answer(msync(shared, 8192, MS_SYNC)));
    must(ftruncate(fd, 100), "ftruncate");
    printf("beyond the new end: %d\n", shared[200]);
    close(fd);
    munmap(shared, 8192);
    fd = must(open("mapped", O_RDONLY), "open");
    printf("kept: %ld bytes, %.3s\n", (long)must(pread(fd, seen, 3, 0), "pread"), seen);
}

static void copy(const char *from, const char *to) {
    int in = must(open(from, O_RDONLY), from), out = must(open(to, O_WRONLY | O_CREAT | O_TRUNC, 0755), to);
    struct stat stat;
    must(fstat(in, &stat), "fstat");
    must(sendfile(out, in, NULL, stat.st_size), "sendfile");
    close(in);
    close(out);
}

static void execute(long count) {
    for (long number = 0; number < count; number++) {
        copy("/bin/true", "program");
        int code = system("./program");
        if (code != 0) printf("just written, but ends with %d\n", code);
        unlink("program");
    }
    copy("/bin/sleep", "program");
    struct stat before, after;
    must(stat("program", &before), "stat");
    pid_t child = must(vfork(), "vfork");
    if (child == 0) {
        execl("./program", "program", "30", (char *)NULL);
        _exit(127);
    }
    printf("write: %s\n", answer(open("program", O_WRONLY)));
    printf("append: %s\n", answer(open("program", O_RDWR | O_APPEND)));
    printf("cut: %s\n", answer(open("program", O_RDONLY | O_TRUNC)));
    printf("truncate: %s\n", answer(truncate("program", 0)));
    must(stat("program", &after), "stat");
    printf("unchanged: %d\n", before.st_size == after.st_size);
    printf("rename over it: %s\n", answer(rename("program", "moved")));
    kill(child, 9);
    waitpid(child, NULL, 0);
    int writer = must(open("moved", O_WRONLY), "open");
    int code = system("./moved 0 2>/dev/null");
    printf("while written: %d\n", WEXITSTATUS(code));
    close(writer);
    code = system("./moved 0");
    printf("afterwards: %d\n", WEXITSTATUS(code));
    close(create("script", "#!/bin/sh\necho script $1\n"));
    must(chmod("script", 0755), "chmod");
    fflush(stdout);
    code = system("./script works");
}

static void write_fifo(void) {
    int fd = must(open("fifo", O_WRONLY), "open");
    must(write(fd, "through", 7), "write");
}

static void call(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "socket"};
    int fd = must(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
    must(connect(fd, (struct sockaddr *)&name, sizeof name), "connect");
    must(write(fd, "called", 6), "write");
}

static void pipes(long count) {
    (void)count;
    char text[16] = "";
    must(mkfifo("fifo", 0640), "mkfifo");
    int fd = must(open("fifo", O_RDONLY | O_NONBLOCK), "open");
    in_child(write_fifo);
    long length = must(read(fd, text, sizeof text - 1), "read");
    printf("fifo: %ld %s\n", length, text);
    printf("no reader: %s\n", (close(fd), answer(open("fifo", O_WRONLY | O_NONBLOCK))));
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "socket"};
    int listener = must(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
    must(bind(listener, (struct sockaddr *)&name, sizeof name), "bind");
    printf("bound twice: %s\n", answer(bind(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&name, sizeof name)));
    must(listen(listener, 1), "listen");
    in_child(call);
    memset(text, 0, sizeof text);
    length = must(read(must(accept(listener, NULL, NULL), "accept"), text, sizeof text - 1), "read");
    printf("socket: %ld %s\n", length, text);
    struct stat stat;
    must(lstat("socket", &stat), "lstat");
    printf("kind: %o; open: %s\n", stat.st_mode & S_IFMT, answer(open("socket", O_RDONLY)));
    must(rename("socket", "renamed"), "rename");
    close(listener);
    struct sockaddr_un renamed = {.sun_family = AF_UNIX, .sun_path = "renamed"};
    int fd2 = must(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
    printf("nobody listens: %s\n", answer(connect(fd2, (struct sockaddr *)&renamed, sizeof renamed)));
    unlink("fifo");
    unlink("renamed");
}

static void name_of(char *name, const char *prefix, long number) {
    sprintf(name, "%s%06ld", prefix, number);
}

static void directory(long count) {
    char name[64], *seen = calloc(count, 1);
    must(mkdir("dir", 0755), "mkdir");
    must(chdir("dir"), "chdir");
    for (long number = 0; number < count; number++) {
        name_of(name, "f", number);
        close(must(open(name, O_CREAT | O_WRONLY | O_EXCL, 0600), name));
    }
    DIR *dir = opendir(".");
    struct dirent *entry;
    long total = 0, half = -1, again = 0, twice = 0, missing = 0;
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] == 'f') seen[atol(entry->d_name + 1)]++;
        if (++total == count / 2) {
            half = telldir(dir);
            /* Meanwhile names come and go: those with odd numbers stay. */
            for (long number = 0; number < count; number += 2) {
                name_of(name, "f", number);
                must(unlink(name), name);
            }
            for (long number = 0; number < 50; number++) {
                name_of(name, "new", number);
                close(must(open(name, O_CREAT | O_WRONLY, 0600), name));
            }
        }
    }
    for (long number = 1; number < count; number += 2) {
        twice += seen[number] > 1;
        missing += seen[number] == 0;
    }
    printf("twice: %ld; missing: %ld\n", twice, missing);
    seekdir(dir, half);
    memset(seen, 0, count);
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] == 'f') twice += seen[atol(entry->d_name + 1)]++ > 0;
        again++;
    }
    printf("after going back: twice: %ld; some: %d\n", twice, again > 0 && again <= total + 50);
    rewinddir(dir);
    total = 0;
    while ((entry = readdir(dir))) {
        struct stat stat;
        total += entry->d_name[0] != '.';
        must(lstat(entry->d_name, &stat), entry->d_name);
        if (entry->d_type != DT_UNKNOWN && entry->d_type != (S_ISDIR(stat.st_mode) ? DT_DIR : DT_REG)) printf("wrong type\n");
    }
    printf("left: %ld\n", total);
    rewinddir(dir);
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] != '.') must(unlink(entry->d_name), entry->d_name);
    }
    closedir(dir);
    must(chdir(".."), "chdir");
    printf("empty: %s\n", answer(rmdir("dir")));
}

static void deep(long count) {
    char name[256], buffer[8192];
    int top = must(open(".", O_RDONLY | O_DIRECTORY), "open");
    memset(name, 'd', 255);
    name[255] = 0;
    for (long level = 0; level < count; level++) {
        must(mkdir(name, 0755), "mkdir");
        must(chdir(name), "chdir");
    }
    close(create("bottom", "deep"));
    struct stat stat;
    must(lstat("bottom", &stat), "lstat");
    printf("bottom: %ld bytes; the working directory: %s\n", (long)stat.st_size,
           getcwd(buffer, 4096) ? "short enough" : strerrorname_np(errno));
    must(rename("bottom", "../renamed"), "rename");
    must(link("../renamed", "linked"), "link");
    must(symlink("../renamed", "symlink"), "symlink");
    int fd = must(open("symlink", O_RDONLY), "open");
    printf("through the link: %ld\n", (long)must(read(fd, buffer, 100), "read"));
    close(fd);
    unlink("linked");
    unlink("symlink");
    for (long level = 0; level < count; level++) {
        must(chdir(".."), "chdir");
        unlink("renamed");
        must(rmdir(name), "rmdir");
    }
    struct stat here, there;
    must(fstat(top, &here), "fstat");
    must(lstat(".", &there), "lstat");
    printf("back: %d\n", here.st_ino == there.st_ino && here.st_dev == there.st_dev);
    printf("too long: %s\n", (strcat(name, "d"), answer(mkdir(name, 0755))));
    printf("too long: %s\n", answer(open(name, O_RDONLY)));
    printf("too long: %s\n", answer(unlink(name)));
}

static void sparse(long gigabytes) {
    off_t end = (off_t)gigabytes << 30;
    char text[8] = "";
    int fd = create("sparse", "start");
    must(pwrite(fd, "end", 3, end), "pwrite");
    must(pwrite(fd, "middle", 6, end / 2), "pwrite");
    struct stat stat;
    must(fstat(fd, &stat), "fstat");
    printf("size: %lld; sparse: %d\n", (long long)stat.st_size, stat.st_blocks < 1000);
    printf("data: %lld, hole: %lld, data: %lld\n", (long long)lseek(fd, 0, SEEK_DATA), (long long)lseek(fd, 0, SEEK_HOLE),
           (long long)lseek(fd, 1 << 20, SEEK_DATA));
    printf("beyond: %s\n", answer(lseek(fd, end + 100, SEEK_DATA)));
    must(pread(fd, text, 6, end / 2), "pread");
    printf("middle: %s\n", text);
    printf("punch: %s\n", answer(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, end / 2, 4096)));
    must(pread(fd, text, 6, end / 2), "pread");
    printf("punched: %d; data: %lld\n", text[0], (long long)lseek(fd, 1 << 20, SEEK_DATA));
    int other = must(open("copy", O_RDWR | O_CREAT | O_TRUNC, 0644), "open");
    off_t from = end - 4096, to = 0;
    printf("copied: %ld\n", (long)copy_file_range(fd, &from, other, &to, 5000, 0));
    must(pread(other, text, 3, 4096), "pread");
    printf("the end of it: %.3s\n", text);
    must(ftruncate(fd, 3), "ftruncate");
    must(ftruncate(fd, end), "ftruncate");
    memset(text, 'x', sizeof text);
    must(pread(fd, text, 6, 0), "pread");
    printf("cut: %.3s %d\n", text, text[4]);
    unlink("sparse");
    unlink("copy");
}

static void unnamed(long count) {
    (void)count;
    int fd = open(".", O_TMPFILE | O_RDWR, 0640);
    printf("O_TMPFILE: %s\n", answer(fd));
    if (fd < 0) return;
    char path[64];
    struct stat stat;
    must(write(fd, "content", 7), "write");
    must(fstat(fd, &stat), "fstat");
    printf("links: %ld\n", (long)stat.st_nlink);
    sprintf(path, "/proc/self/fd/%d", fd);
    printf("named: %s\n", answer(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW)));
    must(write(fd, " more", 5), "write");
    must(lstat("named", &stat), "lstat");
    printf("links: %ld, bytes: %ld, mode: %o\n", (long)stat.st_nlink, (long)stat.st_size, stat.st_mode & 07777);
    printf("again: %s\n", answer(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW)));
    unlink("named");
    printf("after its name went: %s\n", answer(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW)));
    close(fd);
    fd = must(open(".", O_TMPFILE | O_RDWR | O_EXCL, 0640), "O_TMPFILE | O_EXCL");
    sprintf(path, "/proc/self/fd/%d", fd);
    printf("exclusive: %s\n", answer(linkat(AT_FDCWD, path, AT_FDCWD, "exclusive", AT_SYMLINK_FOLLOW)));
}

static void times(long count) {
    (void)count;
    close(create("timed", "x"));
    struct timespec both[2] = {{1000000000, 123456789}, {-5, 1}};
    struct stat stat;
    must(utimensat(AT_FDCWD, "timed", both, 0), "utimensat");
    must(lstat("timed", &stat), "lstat");
    printf("%ld.%09ld %ld.%09ld\n", stat.st_atim.tv_sec, stat.st_atim.tv_nsec, stat.st_mtim.tv_sec, stat.st_mtim.tv_nsec);
    both[0].tv_nsec = UTIME_OMIT;
    both[1] = (struct timespec){4000000000, 999999999};
    must(utimensat(AT_FDCWD, "timed", both, 0), "utimensat");
    must(lstat("timed", &stat), "lstat");
    printf("%ld.%09ld %ld.%09ld\n", stat.st_atim.tv_sec, stat.st_atim.tv_nsec, stat.st_mtim.tv_sec, stat.st_mtim.tv_nsec);
    both[1].tv_nsec = UTIME_NOW;
    must(utimensat(AT_FDCWD, "timed", both, 0), "utimensat");
    must(lstat("timed", &stat), "lstat");
    printf("now: %d; kept: %ld\n", labs(stat.st_mtim.tv_sec - time(NULL)) < 5, stat.st_atim.tv_sec);
    struct timespec change = stat.st_ctim;
    usleep(20000);
    must(rename("timed", "renamed"), "rename");
    must(lstat("renamed", &stat), "lstat");
    printf("a rename changes ctime: %d\n", change.tv_sec != stat.st_ctim.tv_sec || change.tv_nsec != stat.st_ctim.tv_nsec);
    must(chmod("renamed", 0400), "chmod");
    must(lstat("renamed", &stat), "lstat");
    change = stat.st_ctim;
    usleep(20000);
    close(must(open("renamed", O_RDONLY), "open"));
    must(lstat("renamed", &stat), "lstat");
    printf("reading changes ctime: %d\n", change.tv_sec != stat.st_ctim.tv_sec || change.tv_nsec != stat.st_ctim.tv_nsec);
    umask(027);
    must(mkdir("group", 0777), "mkdir");
    must(chmod("group", 02775), "chmod");
    must(mkdir("group/below", 0777), "mkdir");
    must(lstat("group/below", &stat), "lstat");
    printf("below a setgid directory: %o\n", stat.st_mode & 07777);
    must(rmdir("group/below"), "rmdir");
    must(rmdir("group"), "rmdir");
    unlink("renamed");
}

int main(int count, char **arguments) {
    static const struct {
        const char *name;
        void (*run)(long);
    } scenarios[] = {{"locks", locks},         {"append", append}, {"mapped", mapped}, {"execute", execute},
                     {"pipes", pipes},         {"directory", directory}, {"deep", deep}, {"sparse", sparse},
                     {"unnamed", unnamed},     {"times", times}};
    if (count == 3) {
        for (size_t at = 0; at < sizeof scenarios / sizeof *scenarios; at++) {
            if (strcmp(scenarios[at].name, arguments[1]) == 0) {
                scenarios[at].run(atol(arguments[2]));
                return 0;
            }
        }
    }
    fprintf(stderr, "usage: programs SCENARIO COUNT\n");
    return 2;
}
