/* io OPERATION FILE MIB: moves data of one file and prints the nanoseconds it took.
 *
 * read: in order, 128 KiB at a time; random: as many 4 KiB reads as there are pages in a quarter of the file,
 * in a fixed odd order; map: a byte of every page of a shared mapping; write: MIB mebibytes into a new file,
 * 1 MiB at a time; tiny: the same 4 KiB at a time. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, LARGE = 1 << 20, MEDIUM = 128 << 10 };
static char buffer[LARGE];

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int write_file(const char *path, size_t bytes, size_t at_once) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0) return -1;
    for (size_t done = 0; done < bytes; done += at_once) {
        if (write(file, buffer, at_once) != (ssize_t)at_once) return -1;
    }
    return close(file);
}

static int read_file(const char *operation, const char *path, size_t bytes) {
    int file = open(path, O_RDONLY);
    if (file < 0) return -1;
    if (strcmp(operation, "read") == 0) {
        for (size_t done = 0; done < bytes; done += MEDIUM) {
            if (read(file, buffer, MEDIUM) != MEDIUM) return -1;
        }
    } else if (strcmp(operation, "random") == 0) {
        size_t pages = bytes / PAGE;
        for (size_t i = 0; i < pages / 4; i++) {
            if (pread(file, buffer, PAGE, (off_t)((i * 2654435761u) % pages * PAGE)) != PAGE) return -1;
        }
    } else {
        volatile char *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
        if (map == MAP_FAILED) return -1;
        for (size_t i = 0; i < bytes; i += PAGE) (void)map[i];
        munmap((void *)map, bytes);
    }
    return close(file);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    size_t bytes = (size_t)atol(argv[3]) << 20;
    memset(buffer, 'x', sizeof buffer);
    long long start = now();
    int failed;
    if (strcmp(argv[1], "write") == 0) failed = write_file(argv[2], bytes, LARGE);
    else if (strcmp(argv[1], "tiny") == 0) failed = write_file(argv[2], bytes, PAGE);
    else failed = read_file(argv[1], argv[2], bytes);
    if (failed) return perror(argv[2]), 1;
    printf("%lld\n", now() - start);
    return 0;
}
