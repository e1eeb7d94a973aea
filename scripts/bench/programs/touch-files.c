/* touch-files OPERATION PASSES LIST: does one thing with every path of a list (one a line), PASSES times, and
 * prints the nanoseconds that each pass took.
 *
 * open: open and close; read: open, read all, close; stat: statx; fs: statfs; each with the fewest system calls. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int touch(char operation, const char *path) {
    static char buffer[1 << 16];
    if (operation == 's') {
        struct statx found;
        return statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &found);
    }
    if (operation == 'f') {
        struct statfs found;
        return statfs(path, &found);
    }
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return -1;
    ssize_t got = 0;
    if (operation == 'r') {
        while ((got = read(file, buffer, sizeof buffer)) > 0) {}
    }
    close(file);
    return got < 0 ? -1 : 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    FILE *list = fopen(argv[3], "r");
    if (list == NULL) return perror(argv[3]), 1;
    size_t count = 0, room = 0;
    char **paths = NULL, *line = NULL;
    size_t line_room = 0;
    ssize_t length;
    while ((length = getline(&line, &line_room, list)) > 0) {
        if (line[length - 1] == '\n') line[length - 1] = 0;
        if (count == room) {
            room = room ? 2 * room : 1024;
            paths = realloc(paths, room * sizeof *paths);
            if (paths == NULL) return 1;
        }
        paths[count++] = strdup(line);
    }
    fclose(list);
    for (int pass = 0; pass < atoi(argv[2]); pass++) {
        long long start = now();
        for (size_t i = 0; i < count; i++) {
            if (touch(argv[1][0], paths[i]) != 0) return perror(paths[i]), 1;
        }
        printf("%lld\n", now() - start);
    }
    return 0;
}
