// Reads, lists, looks for and writes files, without any shared library.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void check(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

int main(void) {
    int dir = open("in", O_RDONLY | O_DIRECTORY), file = openat(dir, "a", O_RDONLY);
    check(dir >= 0 && file >= 0, "open");
    char *mapped = mmap(NULL, 2, PROT_READ, MAP_PRIVATE, file, 0);
    check(mapped != MAP_FAILED && mapped[0] == 'a', "mmap");
    check(faccessat(dir, "missing", R_OK, 0) != 0, "faccessat");
    DIR *names = fdopendir(dir);
    while (readdir(names)) {
    }
    check(mkdir("out", 0755) == 0, "mkdir");
    FILE *out = fopen("out/part", "w");
    check(out && fwrite(mapped, 1, 2, out) == 2 && fclose(out) == 0, "write");
    check(rename("out/part", "out/whole") == 0, "rename");
    return 0;
}
