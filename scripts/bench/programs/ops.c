/* ops OPERATION COUNT PASSES: does one operation with the names PREFIX0 .. PREFIX(COUNT-1) of the directory src,
 * PASSES times over all of them, with the fewest system calls. Names that must be there are made before. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char buffer[4096];

static int use(int file, int writing) {
    if (file < 0) return -1;
    ssize_t done = writing == 0 ? 0 : writing < 0 ? read(file, buffer, sizeof buffer) : write(file, buffer, sizeof buffer);
    return close(file) == 0 && done >= 0 ? 0 : -1;
}

static int list(const char *path) {
    DIR *dir = opendir(path);
    if (dir == NULL) return -1;
    while (readdir(dir) != NULL) {}
    return closedir(dir);
}

static int absent(const char *path) {
    struct stat found;
    return stat(path, &found) == 0 ? -1 : 0;
}

static int perform(const char *operation, int number) {
    struct stat found;
    char file[64], link[64], dir[64], new[64];
    snprintf(file, sizeof file, "src/f%d", number);
    snprintf(link, sizeof link, "src/l%d", number);
    snprintf(dir, sizeof dir, "src/d%d", number);
    snprintf(new, sizeof new, "src/n%d", number);
    if (!strcmp(operation, "stat")) return stat(file, &found);
    if (!strcmp(operation, "stat-absent")) return absent(new);
    if (!strcmp(operation, "open")) return use(open(file, O_RDONLY), 0);
    if (!strcmp(operation, "read")) return use(open(file, O_RDONLY), -1);
    if (!strcmp(operation, "readlink")) return readlink(link, buffer, sizeof buffer) < 0 ? -1 : 0;
    if (!strcmp(operation, "readdir")) return list(dir);
    if (!strcmp(operation, "chmod")) return chmod(file, 0600);
    if (!strcmp(operation, "overwrite")) return use(open(file, O_WRONLY | O_TRUNC), 1);
    if (!strcmp(operation, "create")) return use(open(new, O_WRONLY | O_CREAT | O_EXCL, 0644), 1);
    if (!strcmp(operation, "mkdir")) return mkdir(new, 0755);
    if (!strcmp(operation, "symlink")) return symlink("f0", new);
    if (!strcmp(operation, "rename")) return rename(file, new);
    if (!strcmp(operation, "unlink")) return unlink(file);
    return -1;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    for (int pass = 0; pass < atoi(argv[3]); pass++) {
        for (int number = 0; number < atoi(argv[2]); number++) {
            if (perform(argv[1], number) != 0) return perror(argv[1]), 1;
        }
    }
    return 0;
}
